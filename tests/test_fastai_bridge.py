"The fastai bridge: what its notebook need not show."
import pickle, random, warnings
from functools import partial

import fastai.callback.all
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.data import WeightedDL
from fastai.callback.fp16 import MixedPrecision
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize, get_image_files, parent_label
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from fastai.torch_basics import Transform
from fastai.vision.augment import Flip, RandomErasing, RandomResizedCrop, Resize, aug_transforms
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock, ImageDataLoaders
from PIL import Image
from torch import nn

from lotus_nb.core import changed, seeded
from lotus_nb.fastai_bridge import dl_augment, dl_images, forget_positions, task_from_dls, task_from_learner

warnings.filterwarnings('ignore')
N, SIDE = 30, 10
norm = lambda: Normalize.from_stats([.5]*3, [.25]*3, cuda=False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    g = torch.Generator().manual_seed(0)
    for part, n in (('train', N), ('valid', 12)):
        for i in range(n):
            file = root/part/'abc'[i % 3]/f'{part}{i:02}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 200, (SIDE + i % 2, SIDE, 3), generator=g)       # two sizes
            pixels[..., i % 3] += 55
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(file)
    return root


def loaders(folder, item_tfms=Resize(8), batch_tfms=None, **kwargs):
    kwargs = dict(bs=8, num_workers=0, device='cpu') | kwargs
    with seeded(0): return ImageDataLoaders.from_folder(folder, item_tfms=item_tfms, batch_tfms=batch_tfms or [Flip(), norm()], **kwargs)


def network(k=3, chans=3):
    with seeded(0): return nn.Sequential(nn.Conv2d(chans, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, k))


def quiet(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(), seeded(0): learn.fit(*args, **kwargs)
    return learn


def learner(dls, **kwargs): return quiet(Learner(dls, network(), CrossEntropyLossFlat(), metrics=accuracy, **kwargs), 1)
def plain(x): return x.as_subclass(torch.Tensor)
def same(a, b): return not changed(a.state_dict(), b.state_dict())
def finetune(learn, forget=(0, 4), **kwargs): return learn.unlearn('finetune', list(forget), epochs=1, lr=1e-3, **kwargs)


def test_learner_is_left_bit_for_bit(folder):
    class Keeps(Callback): "A callback with a reference into the learner."
    keeps = Keeps()
    learn = learner(loaders(folder), cbs=keeps)
    keeps.net = learn.model
    learn.model.train()
    def everything(): return pickle.dumps((learn.model.state_dict(), learn.opt.state_dict(), [c.name for c in learn.cbs],
                                           [p.requires_grad for p in learn.model.parameters()], random.getstate()))
    def mean(): return [t for t in learn.dls.train.after_batch.fs if isinstance(t, Normalize)][0].mean
    before, dl, stats, generators = everything(), learn.dls.train, mean(), torch.get_rng_state()
    new = quiet(finetune(learn), 1)
    assert before == everything()
    assert learn.model.training and learn.dls.train is dl and len(dl.dataset) == N and torch.equal(generators, torch.get_rng_state())
    assert all(c.learn is learn for c in learn.cbs) and all(c.learn is new for c in new.cbs)
    assert keeps.net is learn.model and new.keeps is not keeps and new.keeps.net is new.model
    assert mean() is stats
    assert not set(map(id, learn.dls.train.after_batch.fs)) & set(map(id, new.dls.train.after_batch.fs))
    assert not {id(p) for p in learn.model.parameters()} & {id(p) for p in new.model.parameters()}


def test_seed_decides(folder):
    learn = learner(loaders(folder))
    a, b, c = (finetune(learn, seed=s) for s in (0, 0, 1))
    assert same(a.model, b.model) and not same(a.model, c.model)
    assert same(quiet(a, 1).model, quiet(b, 1).model)                                  # the order of later batches, too


def test_export_and_pickle(folder):
    new = quiet(finetune(learner(loaders(folder))), 1)
    new.path = folder
    item = get_image_files(folder/'valid')[0]
    with new.no_bar(): expected = new.predict(item)[2]
    new.export('new.pkl')
    back = load_learner(folder/'new.pkl')
    with back.no_bar(): assert torch.allclose(back.predict(item)[2], expected)
    assert back.unlearned.method == 'finetune' and not len(back.dls.train_ds)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in new.model.modules())
    assert b'lotus_nb' in (folder/'new.pkl').read_bytes()
    del new.unlearned
    new.export('bare.pkl')
    assert b'lotus_nb' not in (folder/'bare.pkl').read_bytes()                         # whoever serves it need not have this library


def test_random_item_transforms_are_still_in_evaluation(folder):
    dls = loaders(folder, RandomResizedCrop(8, min_scale=.3))
    streamed = dl_images(dls.train, resident=False)
    assert all(torch.equal(streamed[i][0], streamed[i][0]) for i in range(5))
    expected = dls.test_dl(dls.train_ds.items, with_labels=True, bs=N).one_batch()
    assert torch.equal(dl_images(dls.train).pixels, plain(expected[0])) and torch.equal(streamed.y, plain(expected[1]))
    assert not torch.equal(plain(dls.train.new(shuffle=False, drop_last=False, bs=N).one_batch()[0]), plain(expected[0]))


def test_held_and_streamed_give_equal_batches(folder):
    model, dls = network(), loaders(folder, batch_tfms=[*aug_transforms(size=6), norm()])
    held, streamed = (task_from_dls(model, dls, range(0, N, 5), resident=r, workers=w) for r, w in ((True, 0), (False, 2)))
    assert hasattr(held.forget, 'batch') and not hasattr(streamed.forget, 'batch') and not hasattr(pickle.loads(pickle.dumps(streamed.val)), 'batch')
    for parts in (('forget',), ('retain',), ('val',), ('forget', 'retain')):
        for a, b in zip(held.loader(*parts, train=False), streamed.loader(*parts, train=False), strict=True):
            assert torch.allclose(a.x, b.x, atol=1e-6) and torch.equal(a.y, b.y) and torch.equal(a.forget, b.forget)
    with seeded(0): sizes = [(len(b.x), b.x.shape[1:], b.x.dtype) for b in streamed.loader('forget', 'retain')]
    assert [s for s, *_ in sizes] == [8, 8, 8, 6] and sizes[0][1:] == ((3, 6, 6), torch.float32)


def test_forget_in_every_form(folder, monkeypatch):
    dls = loaders(folder)
    files = [dls.train_ds.items[i] for i in (3, 1, 8)]
    for form in (files, list(map(str, files)), [f.relative_to(folder) for f in files], iter(files), [3, 1, 8], torch.tensor([3, 1, 8]), pd.Series([3, 1, 8])):
        assert forget_positions(dls, form).tolist() == [3, 1, 8]
    assert forget_positions(dls, lambda f: f in files).tolist() == [1, 3, 8]
    monkeypatch.chdir(folder.parent)
    assert forget_positions(dls, str(files[0].relative_to(folder.parent))).tolist() == [3]
    for bad, says in ((['train/a/train99.png'], 'Did you mean'), ([dls.valid_ds.items[0]], 'validation image'), ([files[0], files[0]], 'more than once'),
                      ([1, 1], 'more than once'), ([-1], 'outside'), ([], 'empty'), ([True, False], 'whole numbers'),
                      (None, 'Name what to forget'), (lambda f: False, 'chose none')):
        with pytest.raises(ValueError, match=says): forget_positions(dls, bad)
    with pytest.raises(TypeError, match='cannot be looked up'): forget_positions(dls, [[1, 2]])
    with pytest.raises(ValueError, match='All 30 images'): task_from_dls(network(), dls, range(N))


def test_data_frame(folder):
    files = get_image_files(folder/'train')
    df = pd.DataFrame(dict(name=[str(f.relative_to(folder)) for f in files], label=[f.parent.name for f in files]))
    dls = ImageDataLoaders.from_df(df, folder, valid_pct=.2, seed=0, item_tfms=Resize(8), bs=8, num_workers=0, device='cpu')
    new = finetune(learner(dls), forget_positions(dls, lambda row: row.label == 'b').tolist())
    assert set(new.dls.train_ds.items.label) == {'a', 'c'} and tuple(new.dls.vocab) == ('a', 'b', 'c')


def test_no_validation_set(folder):
    with seeded(0): dls = DataLoaders(loaders(folder).train)
    learn = learner(loaders(folder))
    learn.dls = dls
    assert finetune(learn).unlearned.method == 'finetune'
    with pytest.raises(ValueError, match='no `val` data'): learn.unlearn('lotus', [0])
    new = learn.unlearn('lotus', [0], val=loaders(folder).valid, epochs=1)
    assert len(new.dls.loaders) == 1 and new.unlearned.hparams['epochs'] == 1


@pytest.mark.parametrize('block, get_y, says', [
    (MultiCategoryBlock, lambda f: [f.parent.name, 'x'], 'TensorMultiCategory'),
    (RegressionBlock, lambda f: 1.5, 'one class for each image')])
def test_other_targets_are_refused(folder, block, get_y, says):
    data = DataBlock((ImageBlock, block), get_items=get_image_files, get_y=get_y, item_tfms=Resize(8))
    with pytest.raises(ValueError, match=says): task_from_dls(network(), data.dataloaders(folder, bs=4, num_workers=0, device='cpu'), [0])


def test_two_inputs_and_wrong_width_are_refused(folder):
    data = DataBlock((ImageBlock, ImageBlock, CategoryBlock), get_items=get_image_files, get_x=[lambda f: f]*2, get_y=parent_label, n_inp=2,
                     item_tfms=Resize(8)).dataloaders(folder, bs=4, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match='a tuple of 3; it must be a pair'): task_from_dls(network(), data, [0])
    with pytest.raises(ValueError, match='5 logits, but there are 3 classes'): task_from_dls(network(5), loaders(folder), [0])
    with pytest.raises(TypeError, match='must be fastai `DataLoaders`'): task_from_dls(network(), loaders(folder).train, [0])
    with pytest.raises(ValueError, match='are empty'): task_from_dls(network(), DataLoaders(), [0])


def test_mixed_precision_and_other_optimisers(folder):
    learn = learner(loaders(folder))
    learn.add_cb(MixedPrecision('bf16'))
    new = quiet(finetune(learn), 1)
    assert isinstance(new.mixed_precision, MixedPrecision) and new.mixed_precision is not learn.mixed_precision
    for opt_func in (partial(OptimWrapper, opt=torch.optim.AdamW), None):
        model = network()
        bound = opt_func or OptimWrapper(model.parameters(), torch.optim.SGD, lr=.1, momentum=.9)   # one that holds the old model's weights
        learn = quiet(Learner(loaders(folder), model, CrossEntropyLossFlat(), opt_func=bound), 1)
        before, new = pickle.dumps(learn.model.state_dict()), finetune(learn)
        start = new.model[0].weight.detach().clone()
        quiet(new, 1)
        assert pickle.dumps(learn.model.state_dict()) == before and not torch.equal(new.model[0].weight, start)


def test_frozen_body_stays(folder):
    learn = learner(loaders(folder), splitter=lambda m: [list(m[:3].parameters()), list(m[3:].parameters())], train_bn=False)
    learn.freeze()
    new = quiet(finetune(learn), 1)
    names = changed(learn.model.state_dict(), new.model.state_dict())
    assert {'5.weight', '5.bias'} <= set(names) and not {'0.weight', '0.bias'} & set(names)


def test_weighted_loader_keeps_its_weights(folder):
    dls = loaders(folder)
    dls.loaders[0] = dls.train.new(cls=WeightedDL, wgts=list(range(1, N + 1)))
    new = finetune(learner(dls), (0, 2))
    kept = torch.tensor([2., *range(4, N + 1)]).double()
    assert torch.allclose(torch.tensor(new.dls.train.wgts), kept/kept.sum())


def test_plain_datasets_and_grey_images(folder):
    rows = [(torch.rand(3, 8, 8), i % 3) for i in range(20)]
    dls = DataLoaders.from_dsets(rows[:14], rows[14:], bs=4, device='cpu', num_workers=0)
    learn = quiet(Learner(dls, network(), CrossEntropyLossFlat()), 1)
    new = quiet(finetune(learn), 1)
    assert len(new.dls.train_ds) == 12 and torch.equal(new.dls.train_ds[0][0], rows[1][0])
    with pytest.raises(ValueError, match='have no names'): forget_positions(dls, lambda o: True)
    grey = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(8),
                     batch_tfms=[Flip(p=1.), Normalize.from_stats([.5], [.5], cuda=False)]).dataloaders(folder, bs=4, num_workers=0, device='cpu')
    task = task_from_dls(network(chans=1), grey, [0], test=grey.valid)
    x, _ = task.retain.batch(torch.arange(4))
    assert x.shape == (4, 1, 8, 8) and torch.allclose(task.augment(x), x.flip(-1), atol=1e-5)


def test_augmentation(folder):
    x = dl_images(loaders(folder).train).pixels
    assert dl_augment(loaders(folder, batch_tfms=[norm()]).train) is None
    erased = dl_augment(loaders(folder, batch_tfms=[norm(), RandomErasing(p=1., sh=.3)]).train)(x)                # after `Normalize`
    assert 0 < (erased != x).float().mean() < .7
    augment = dl_augment(loaders(folder, batch_tfms=[*aug_transforms(max_warp=0), norm()]).train)
    with seeded(3): a = augment(x)
    with seeded(3): b = augment(x)
    assert torch.equal(a, b) and not torch.equal(a, x) and type(a) is torch.Tensor
    class OnlyInTraining(Transform):
        split_idx, order = 0, 20
        def encodes(self, x: torch.Tensor): return 1 - x
    negative = dl_augment(loaders(folder, batch_tfms=[OnlyInTraining(), norm()]).train)(x)
    assert torch.allclose(negative, ((1 - (x*.25 + .5)) - .5)/.25, atol=1e-5)
    learn = learner(loaders(folder))
    assert not same(finetune(learn).model, finetune(learn, augment=False).model)
    assert task_from_learner(learn, [0], augment=torch.flip).augment is torch.flip


def test_twins_on_request(folder, tmp_path):
    for part in ('train', 'valid'):
        for f in get_image_files(folder/part):
            new = tmp_path/part/f.parent.name/f.name
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(f.read_bytes())
    original = get_image_files(tmp_path/'train')[0]
    original.with_name('copy.png').write_bytes(original.read_bytes())
    for resident in (True, False):
        with pytest.raises(ValueError, match='pixel for pixel'): task_from_dls(network(), loaders(tmp_path), [original], twins='error', resident=resident)
    assert len(task_from_dls(network(), loaders(tmp_path), [original]).forget) == 1


def test_gold_and_test_images(folder):
    dls, gold = loaders(folder), learner(loaders(folder))
    unseen = dls.test_dl(get_image_files(folder/'valid'), with_labels=True)
    task = task_from_learner(learner(dls), [0], gold=gold, test=unseen, batch_size=5)
    assert len(task.test) == 12 and same(task.gold, gold.model) and task.batch_size == 5 and [len(b.y) for b in task.loader('retain')] == [5]*5 + [4]
