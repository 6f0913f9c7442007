"Fixtures for all tests."
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore

os.environ.setdefault('OMP_NUM_THREADS', '1')     # the networks here are small: a second thread would only wait for the first
os.environ.setdefault('MPLBACKEND', 'Agg')

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    "Notebooks come last, since they run beside the other tests from the start."
    items.sort(key=lambda i: 'runs' in i.fixturenames)


def quick(name, epochs):
    "Few epochs or steps, for methods that have any."
    from lotus_nb.methods.core import get_method
    return {k: v for k, v in dict(epochs=epochs, steps=20*epochs).items() if k in get_method(name).defaults}


@pytest.fixture(scope='session', autouse=True)
def _begun(request):
    "Notebook → its run to come, and a semaphore: one at a time beside the other tests, which leave a second core idle."
    wanted = [*dict.fromkeys(p['notebook'] for i in request.session.items if 'notebook' in (p := getattr(getattr(i, 'callspec', None), 'params', {})))]
    if not wanted:
        yield {}, None
        return
    from test_notebooks import SLOW, start
    wanted.sort(key=lambda n: not any(k in n for k in SLOW))
    pool, free, ended = ThreadPoolExecutor(2), Semaphore(1), Event()
    def one(n):
        with free: return None if ended.is_set() else start(n)
    yield {n: pool.submit(one, n) for n in wanted}, free
    ended.set()
    free.release()
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope='session')
def runs(_begun):
    "Notebook → its run to come, two at a time from now on."
    _begun[1].release()
    return _begun[0]


@pytest.fixture(scope='session')
def digits_task0():
    "A network that has memorised 400 digits, forty of them to be forgotten."
    from lotus_nb.train import digits_task
    return digits_task(seed=0)


@pytest.fixture(scope='session')
def task(digits_task0):
    "The same, for short."
    return digits_task0


@pytest.fixture(scope='session')
def real_data():
    "Folder with CIFAR-10: `LOTUS_DATA`, or `../shared/data` beside the checkout."
    for folder in (os.environ.get('LOTUS_DATA'), ROOT.parent/'shared'/'data'):
        if folder and list(Path(folder).glob('cifar10*.zip')): return Path(folder)
    pytest.skip('CIFAR-10 is not here: set LOTUS_DATA to a folder that holds it')
