"What models and weights must withstand, beyond what the notebook teaches."
import io
import pickle
import random

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lotus_nb import models
from lotus_nb.models import create_model, load_weights, normalisation, read_weights, save_weights

OURS = sorted(models.default_cfgs)


def small(**kw): return create_model('small_cnn', **{'in_chans': 1, 'seed': 0, **kw})


def snapshot(model): return {k: t.clone() for k, t in model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Evil:
    "Creates a file when unpickled."
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return open, (self.mark, 'w')


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('name', OURS)
def test_every_registered_model_runs(name, channels):
    model = create_model(name, n_classes=7, in_chans=channels, img_size=32).eval()
    x = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        z = model(x)
        assert z.shape == (2, 7) and z.isfinite().all()
        assert torch.equal(model.forward_head(model.forward_features(x)), z)
    assert all(len(v) == channels for v in normalisation(model))
    assert model.pretrained_cfg['input_size'] == (channels, 32, 32)
    assert model.pretrained_cfg['architecture'] == name


@pytest.mark.parametrize('name', OURS)
def test_timm_builds_ours_too(name):
    model = timm.create_model(name)
    assert model.num_classes == 10 and model.pretrained_cfg['input_size'][0] == 3
    assert model.get_classifier() is getattr(model, model.pretrained_cfg['classifier'])
    model.half().reset_classifier(0)
    assert model.num_features == model.forward_head(torch.rand(2, model.num_features, 2, 2).half()).shape[1]
    model.reset_classifier(3)
    assert model.get_classifier().weight.dtype == torch.float16


@pytest.mark.parametrize('size', [1, 2, 5, 8, 33])
def test_small_cnn_takes_any_size(size):
    assert small()(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize('width', [1, 3, 6, 32])
def test_small_cnn_takes_any_width(width):
    assert small(width=width)(torch.rand(2, 1, 8, 8)).isfinite().all()


def test_lotus_resnet18_takes_larger_images():
    features = create_model('lotus_resnet18').forward_features
    assert [features(torch.rand(1, 3, n, n)).shape[-1] for n in (32, 64, 128)] == [2, 4, 8]


@pytest.mark.parametrize('name', ['small_cnn', 'cifar_resnet20', 'vit_tiny_patch16_224'])
def test_seed_is_deterministic_and_leaves_generators_alone(name):
    kw = dict(img_size=32, seed=3)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    a = create_model(name, **kw)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert same(a.state_dict(), create_model(name, **kw).state_dict())
    assert not same(a.state_dict(), create_model(name, img_size=32, seed=4).state_dict())


def test_without_a_seed_models_differ():
    assert not same(small(seed=None).state_dict(), small(seed=None).state_dict())


@pytest.mark.parametrize('name', ['', '.', 'resnet', 'hf-hub:timm/resnet18', 'local-dir:/tmp', '../resnet18', 'resnet18.nope'])
def test_unknown_names(name):
    with pytest.raises(ValueError, match='Unknown'): create_model(name)


def test_wrong_keyword_of_a_model_is_not_swallowed():
    with pytest.raises(TypeError, match='witdh'): create_model('small_cnn', img_size=8, witdh=3)


def test_nothing_is_downloaded_unless_asked(monkeypatch):
    def refuse(*a, **kw): raise AssertionError('network used')
    monkeypatch.setattr('timm.models._builder.load_pretrained', refuse)
    create_model('resnet18')
    with pytest.raises(AssertionError, match='network used'): create_model('resnet18', weights='pretrained')


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'pickle0', 'pickle2', 'pickle5'])
def test_a_pickle_with_code_is_refused_unexecuted(tmp_path, kind):
    mark, file, model = tmp_path/'executed', tmp_path/'w.pth', small()
    content = dict(state_dict=model.state_dict(), extra=Evil(mark))
    if kind.startswith('pickle'): file.write_bytes(pickle.dumps(content, protocol=int(kind[-1])))
    else: torch.save(content, file, _use_new_zipfile_serialization=kind == 'zip')
    before = snapshot(model)
    with pytest.raises(ValueError, match='w.pth') as e: load_weights(model, file)
    assert not mark.exists() and same(before, model.state_dict())
    if kind in ('zip', 'legacy'): assert 'unpickling could run code' in str(e.value) and 'save_file' in str(e.value)


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(small(), tmp_path/'whole.pt')
    with pytest.raises(ValueError, match='needs `lotus_nb.models.SmallCNN`'): read_weights(tmp_path/'whole.pt')


def test_a_pickle_named_safetensors_is_refused(tmp_path):
    torch.save(dict(a=Evil(tmp_path/'executed')), tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='unpickling could run code'): read_weights(tmp_path/'w.safetensors')
    assert not (tmp_path/'executed').exists()


def test_the_name_of_a_file_does_not_matter(tmp_path):
    file = save_weights(small(), tmp_path/'w.safetensors')
    torch.save(small().state_dict(), tmp_path/'torch.safetensors')
    assert same(read_weights(file.rename(tmp_path/'w.pth')), read_weights(tmp_path/'torch.safetensors'))


def test_an_old_torch_reads_safetensors_only(tmp_path, monkeypatch):
    torch.save(small().state_dict(), tmp_path/'w.pth')
    save_weights(small(), tmp_path/'w.safetensors')
    monkeypatch.setattr(torch, '__version__', type(torch.__version__)('2.9.1'))
    with pytest.raises(ValueError, match='older than 2.10'): read_weights(tmp_path/'w.pth')
    read_weights(tmp_path/'w.safetensors')


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('keep', [0, 1, 8, 9, 100, .5, .99])
def test_truncated_files(tmp_path, suffix, keep):
    model, file = small(), tmp_path/f'w{suffix}'
    if suffix == '.pth': torch.save(model.state_dict(), file)
    else: save_weights(model, file)
    data, before = file.read_bytes(), snapshot(model)
    file.write_bytes(data[:keep if isinstance(keep, int) else int(keep*len(data))])
    with pytest.raises(ValueError, match='neither a safetensors nor a torch file, or it is cut off'): load_weights(model, file)
    assert same(before, model.state_dict())


@pytest.mark.parametrize('seed', range(20))
def test_damaged_headers_raise_value_errors_only(tmp_path, seed):
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    save_weights(small(), tmp_path/'w.safetensors')
    torch.save(small().state_dict(), buffer)
    for data in ((tmp_path/'w.safetensors').read_bytes(), buffer.getvalue()):
        broken = bytearray(data)
        for i in rng.integers(0, 2000, 8): broken[i] = rng.integers(256)
        (tmp_path/'broken').write_bytes(broken)
        model = small()
        before = snapshot(model)
        try: load_weights(model, tmp_path/'broken')
        except ValueError: assert same(before, model.state_dict())


def test_a_page_instead_of_a_file(tmp_path):
    (tmp_path/'w.pth').write_text('<!DOCTYPE html><html>not found</html>')
    with pytest.raises(ValueError, match='is neither a safetensors nor a torch file'): read_weights(tmp_path/'w.pth')


@pytest.mark.parametrize('content', [{}, {'state_dict': {}}, [torch.ones(2)], torch.ones(2), {'a': 1.}, {0: torch.ones(2)}, 'text'])
def test_torch_files_that_are_not_weights(tmp_path, content):
    torch.save(content, tmp_path/'w.pth')
    with pytest.raises(ValueError, match='does not map names to tensors'): read_weights(tmp_path/'w.pth')


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file"): read_weights(tmp_path/'none'/'w.pth')
    with pytest.raises(FileNotFoundError): read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="weights='pretrained'"): create_model('small_cnn', weights='pretraned')


@pytest.mark.parametrize('kw, says', [(dict(n_classes=100), 'n_classes=10, in_chans=1'), (dict(in_chans=3), 'n_classes=10, in_chans=1'),
                                      (dict(norm='none'), r'4 unexpected|6 unexpected'), (dict(width=8), 'n_classes=10, in_chans=1')])
def test_misfits_leave_the_model_alone(tmp_path, kw, says):
    file, other = save_weights(small(), tmp_path/'w.safetensors'), small(seed=5, **kw)
    before = snapshot(other)
    with pytest.raises(ValueError, match=says): load_weights(other, file)
    assert same(before, other.state_dict())


def test_width_of_a_classifier_that_is_not_ours(tmp_path):
    def net(k): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, k))
    save_weights(net(7), tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='Only the classifier differs: build the model with `n_classes=7`'):
        load_weights(net(3), tmp_path/'w.safetensors')


def test_depth_is_recognised(tmp_path):
    save_weights(create_model('cifar_resnet32', n_classes=5), tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match=r"create_model\('cifar_resnet32', n_classes=5, in_chans=3\)"):
        load_weights(create_model('cifar_resnet20'), tmp_path/'w.safetensors')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('strict', [True, False])
def test_values_that_are_not_finite(tmp_path, value, strict):
    broken, model = small(), small(seed=1)
    with torch.no_grad(): broken.head.bias[3] = value
    save_weights(broken, tmp_path/'w.safetensors')
    before = snapshot(model)
    with pytest.raises(ValueError, match='head.bias'): load_weights(model, tmp_path/'w.safetensors', strict=strict)
    assert same(before, model.state_dict())


def test_values_too_large_for_the_model(tmp_path):
    big = small()
    with torch.no_grad(): big.head.bias[0] = 1e6
    save_weights(big, tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='not finite'): load_weights(small().half(), tmp_path/'w.safetensors')


def test_strict_false_needs_something_that_fits(tmp_path):
    save_file({'other': torch.ones(3)}, tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='1 unexpected'): load_weights(small(), tmp_path/'w.safetensors', strict=False)


def test_old_files_without_batch_counters(tmp_path):
    model = create_model('cifar_resnet20', seed=1)
    save_file({k: t for k, t in model.state_dict().items() if 'num_batches' not in k}, tmp_path/'w.safetensors')
    other = load_weights(create_model('cifar_resnet20', seed=2), tmp_path/'w.safetensors')
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda m: torch.compile(m, backend='eager'), lambda m: nn.DataParallel(torch.compile(m, backend='eager'))])
def test_wrapped_models_load_and_save_plain_names(tmp_path, wrap):
    model = small(seed=1)
    file = save_weights(wrap(model), tmp_path/'w.safetensors')
    assert read_weights(file).keys() == model.state_dict().keys()
    other = small(seed=2)
    load_weights(wrap(other), file)
    assert same(model.state_dict(), other.state_dict()) and normalisation(wrap(other)) == normalisation(model)


def test_a_child_named_module_keeps_its_weights(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.ones(2, 2))
    model, other = Odd(), Odd()
    load_weights(other, save_weights(model, tmp_path/'w.safetensors'))
    assert same(model.state_dict(), other.state_dict())


def test_tied_and_strided_weights_are_saved(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 3, 3)).to(memory_format=torch.channels_last)
    net[1].weight = net[0].weight
    file = save_weights(net, tmp_path/'w.safetensors')
    assert same(load_file(file), net.state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_keeps_its_dtype(tmp_path, dtype):
    file = save_weights(small(seed=1).to(dtype), tmp_path/'w.safetensors')
    model = load_weights(small(), file)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight.to(dtype), read_weights(file)['head.weight'])


def test_loading_keeps_mode_gradients_and_identity(tmp_path):
    model = small().eval()
    model.head.weight.requires_grad_(False)
    parameters = [id(p) for p in model.parameters()]
    assert load_weights(model, save_weights(small(seed=1), tmp_path/'w.safetensors')) is model
    assert not model.training and not model.head.weight.requires_grad and model.head.bias.requires_grad
    assert parameters == [id(p) for p in model.parameters()]


def test_saving_is_atomic(tmp_path, monkeypatch):
    file = save_weights(small(seed=1), tmp_path/'deep'/'er'/'w.safetensors')
    assert [p.name for p in file.parent.iterdir()] == ['w.safetensors']
    before = file.read_bytes()
    def fail(state, path, **kw):
        path.write_bytes(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(models, 'save_file', fail)
    with pytest.raises(OSError, match='disk full'): save_weights(small(seed=2), file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ['w.safetensors']


def test_saving_refuses_other_suffixes(tmp_path):
    with pytest.raises(ValueError, match='only safetensors are written'): save_weights(small(), tmp_path/'w.pth')
    assert not list(tmp_path.iterdir())
