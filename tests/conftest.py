"Fixtures for all tests."
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')     # the networks here are small: a second thread would only wait for the first
os.environ.setdefault('MPLBACKEND', 'Agg')

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


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
