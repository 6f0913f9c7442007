"Two processes train one student."
import os
import subprocess
import sys

import pytest

pytest.importorskip('accelerate', reason='accelerate is not installed')
SCRIPT = """
import sys, torch
from accelerate import Accelerator
from lotus_nb.core import digest
from lotus_nb.methods.core import solve
from lotus_nb.train import digits_task
torch.set_num_threads(1)
acc = Accelerator(cpu=True)
task = digits_task(seed=0, epochs=2)
new = solve(task, 'lotus', recipe='digits', epochs=2, accelerator=acc, amp=False)
open(f'{sys.argv[1]}/{acc.process_index}', 'w').write(f"{acc.num_processes} {digest(new.model)} {new.cost['steps']} {digest(new.model) == digest(task.model)}")
"""


def test_two_processes_end_with_the_same_student(tmp_path):
    (tmp_path/'run.py').write_text(SCRIPT)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(tmp_path/'run.py'), str(tmp_path)],
                          env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path/str(i)).read_text().split() for i in (0, 1))
    assert first == second
    assert first[0] == '2' and first[2] == '2' and first[3] == 'False'      # three batches of 64 an epoch: one for each process, the third left over
