"CIFAR-10 itself, and a ResNet-20 that others trained on it; skipped, visibly, where the data is absent."
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from lotus_nb.cli import image_task
from lotus_nb.data.cifar import cifar, class_names, read_archive, superclasses
from lotus_nb.data.core import positions_of, split_forget
from lotus_nb.metrics.accuracy import accuracy
from lotus_nb.metrics.core import evidence


@pytest.fixture(scope='module')
def run_task(real_data, tmp_path_factory):
    "What `lotus-nb run --weights … --forget indices.npy` works on."
    indices = tmp_path_factory.mktemp('positions')/'indices.npy'
    np.save(indices, np.load(real_data/'annotations.npz')['neurips2023_forget_idx_cifar10'])
    return image_task(0, None, data='cifar10', root=str(real_data), model='cifar_resnet20', gold=None, forget=str(indices), recipe='cifar-resnet20',
                      weights=str(real_data/'weights'/'cifar10_resnet20-12fca82f.safetensors'), batch_size=128, device='cpu')


def test_the_original_is_the_one_its_authors_describe(run_task):
    "91.73 % of the 10,000 test images; with wrong normalisation, order, labels or shortcuts it would not be."
    ev = evidence(run_task.model, run_task, ['val', 'test'])
    assert len(ev.labels['val']) + len(ev.labels['test']) == 10_000
    assert round(accuracy(ev, 'val', 'test'), 4) == .9173


def test_the_stored_forget_set_is_taken(run_task, real_data):
    stored = np.load(real_data/'annotations.npz')['neurips2023_forget_idx_cifar10']
    assert sorted(run_task.forget.ids.tolist()) == sorted(stored.tolist())
    assert run_task.forget.y.bincount().tolist() == [500]*10
    assert len(run_task.retain) == 45_000 and not set(run_task.retain.ids.tolist()) & set(stored.tolist())


def test_parts_of_the_archive_give_the_same_images(real_data, tmp_path):
    whole = real_data/'cifar10.webp.zip'
    with zipfile.ZipFile(whole) as z:
        for k in range(3):
            with zipfile.ZipFile(tmp_path/f'cifar10.part{k}.zip', 'w') as part:
                for n in z.namelist():
                    if not n.endswith('.webp') or int(n[:3])//40 == k: part.writestr(n, z.read(n))
        labels = np.load(io.BytesIO(z.read('labels.npy')))
    (a, ya, na), (b, yb, nb) = read_archive([whole]), read_archive(sorted(tmp_path.glob('*.zip')))
    assert np.array_equal(a, b) and np.array_equal(ya, yb) and np.array_equal(ya, labels) and na == nb == 50_000
    assert torch.from_numpy(a[:50_000]).float().mean((0, 1, 2)).div(255).sub(torch.tensor([.4914, .4822, .4465])).abs().max() < 1e-3


def test_superclasses_are_those_of_the_data_set(real_data):
    names = json.loads((real_data/'class_names.json').read_text())
    fine, coarse = class_names('cifar100'), class_names('cifar20')
    assert (list(fine), list(coarse)) == (names['cifar100_fine'], names['cifar100_coarse'])
    for i, c in enumerate(names['cifar100_fine_to_coarse']): assert fine[i] in superclasses()[coarse[c]]


def test_a_subclass_can_be_forgotten(real_data):
    rockets = positions_of(cifar('cifar100', real_data).train, 'rocket')
    forget, retain = split_forget(cifar('cifar20', real_data).train, rockets)
    assert (len(forget), len(retain)) == (500, 49_500)
    assert {forget.classes[i] for i in forget.y.tolist()} == {'vehicles_2'}
    assert int((retain.y == forget.y[0]).sum()) == 2_000
