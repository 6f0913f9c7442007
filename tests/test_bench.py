"The bench in several processes."
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from processes import FORKS

from lotus_nb.bench import bench, same_results
from lotus_nb.train import digits_task

TASKS = {'digits': partial(digits_task, epochs=5)}


def test_pool_gives_the_same_results(tmp_path):
    args, threads = dict(methods=['finetune', 'lotus'], seeds=(0, 1), recipe='digits'), torch.get_num_threads()
    torch.set_num_threads(1)
    try: one = bench(TASKS, out=tmp_path/'one', **args)
    finally: torch.set_num_threads(threads)
    pool = ProcessPoolExecutor(2, mp_context=FORKS, initializer=torch.set_num_threads, initargs=(1,))
    with pool: several = bench(TASKS, out=tmp_path/'pool', executor=pool, **args)
    assert same_results(one, several)
