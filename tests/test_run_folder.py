"`lotus-nb run` on folders of images, tables of files and published layouts: from a list of files to weights that load, and mistakes that read as sentences."
import csv
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
from PIL import Image
from processes import Python
from safetensors.torch import load_file
from typer.testing import CliRunner

import lotus_nb.cli as cli
from lotus_nb.bench import _cell, same_results
from lotus_nb.cli import _Files, _task_of, app, image_task
from lotus_nb.data.folder import image_folder
from lotus_nb.data.splits import load_split

LIST = ['a/00.png', 'b/03.png', 'c/07.png', 'a/08.png', 'c/31.png']
SMALL = ['--model', 'small_cnn', '--train-recipe', 'tiny', '--set', 'epochs=2', '--batch-size', '32']


def picture(k, i, part=0):
    "Noise with a bar in the colour of the class."
    a = np.random.default_rng((part, k, i)).integers(0, 200, (24, 28, 3)).astype(int)//2
    a[:, 8:20, k] += 100
    return Image.fromarray(a.astype(np.uint8))


def write(root, n, part=0):
    for k, name in enumerate('abc'):
        (root/name).mkdir(parents=True)
        for i in range(n): picture(k, i, part).save(root/name/f'{i:02}.png')
    return root


def lotus_nb(*args, columns=120):
    got = CliRunner().invoke(app, ['run', *map(str, args)], env={'COLUMNS': str(columns)})
    assert got.exception is None or isinstance(got.exception, SystemExit), got.exception
    return got


def rows(out): return pd.read_csv(out/'results.csv', dtype={'hparams': str})


def stored(out, what): return next((out/'models').glob(f'*-{what}'))


def note(out): return json.loads(stored(out, 'images-s0.json').read_text())


@pytest.fixture(scope='module')
def photos(tmp_path_factory): return write(tmp_path_factory.mktemp('flat')/'my photos', 40)


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp('parts')
    for p, (part, n) in enumerate(dict(train=20, val=6, test=6).items()): write(root/part, n, p)
    return root


@pytest.fixture(scope='module')
def these(tmp_path_factory):
    file = tmp_path_factory.mktemp('lists')/'forget these.txt'
    file.write_text('\n'.join(LIST))
    return file


@pytest.fixture(scope='module')
def done(photos, these, tmp_path_factory):
    "A folder whose name has a space, a list of files, an original that is trained."
    out = tmp_path_factory.mktemp('out')/'my run'
    got = lotus_nb('--data', photos, '--forget', these, *SMALL, '--gold', 'train', '--out', out)
    assert got.exit_code == 0, got.output
    return out, got.stdout


# What comes out.

def test_table_report_weights(done):
    out, said = done
    assert set(rows(out).method) >= {'noop', 'gold', 'lotus'} and 'lotus' in said
    for f in ('results.csv', 'checks.csv', 'report.html', 'figure.png'): assert (out/f).stat().st_size and str(out/f) in said
    for f in ('lotus-s0.safetensors', 'forget-s0.npz', 'images-s0.json'): assert str(stored(out, f)) in said
    assert '96 images to train on, 12 to tune and 12 to judge by, in 3 classes; 32 pixels, held in memory.' in said
    assert 'The folder has no splits' not in said                                      # the original was trained here, without what was held out


def test_the_weights_load_into_the_model_that_timm_makes(done):
    model = timm.create_model(note(done[0])['model'], num_classes=len(note(done[0])['classes']))
    model.load_state_dict(load_file(stored(done[0], 'lotus-s0.safetensors')))
    assert note(done[0])['classes'] == ['a', 'b', 'c'] and note(done[0])['mean'] == [.5]*3


def test_what_was_forgotten_is_what_the_list_names(done, photos):
    split = load_split(stored(done[0], 'forget-s0.npz'))
    every = sorted(str(f.relative_to(photos)) for f in photos.rglob('*.png'))
    assert [every[i] for i in split.forget] == sorted(LIST)
    assert len(split.ids) == note(done[0])['images']['train'] and split.source == image_folder(photos, check='none').train.source
    assert 'forget these.txt' in str(split)


def test_the_stored_split_asks_for_the_same_again(done, photos, tmp_path):
    "With another seed as well, though the seed draws what is held out of a folder without splits."
    file = shutil.copy(stored(done[0], 'forget-s0.npz'), tmp_path/'again')
    for seed in (0, 1):
        task = image_task(seed, tmp_path, data=str(photos), root=None, model='small_cnn', weights=None, gold=None, forget=str(file), recipe='tiny', batch_size=32, device='cpu',
                          files=_Files('x', 'x'))
        split = load_split(file)
        assert sorted(task.forget.ids.tolist()) == split.forget.tolist() and sorted(task.retain.ids.tolist()) == split.retain.tolist()
        held = set(task.val.ids.tolist()) | set(task.test.ids.tolist())
        assert not held & set(split.ids.tolist()) and len(held) == 120 - len(split.ids)


def listed_in_training(photos, these, seed):
    splits, positions = cli._read_files(str(photos), None, str(these), seed, _Files(), dict(size=8, check='none'), None)
    return sorted(splits.train.files[i] for i in positions) == sorted(LIST) and len({f for d in splits for f in d.files}) == 120


def test_what_a_list_names_is_never_held_out(photos, these, monkeypatch):
    assert all(listed_in_training(photos, these, seed) for seed in range(8))
    monkeypatch.setattr(cli, '_hold_out', lambda splits, forget, seed: splits)                                     # the bug
    with pytest.raises(ValueError, match='are not in the training set'): [listed_in_training(photos, these, seed) for seed in range(8)]


def test_weights_that_exist_are_taken(done, photos, these, tmp_path):
    original, gold = (next((done[0]/'models').glob(f'images-*/{k}-*.safetensors')) for k in ('original', 'gold'))
    got = lotus_nb('--data', photos, '--forget', these, *SMALL[:2], *SMALL[4:], '--weights', original, '--gold', gold, '--out', tmp_path)
    assert got.exit_code == 0, got.output
    assert 'The folder has no splits' in got.stdout and not list(tmp_path.rglob('original-*'))
    a, b = (rows(o).assign(task='') for o in (done[0], tmp_path))
    assert same_results(*(f[(f.method != 'gold') & (f.metric != 'speedup')] for f in (a, b)))


# One set of images, three ways to read it.

def table_of(parts, file, changed=()):
    with open(file, 'w', newline='') as f:
        w = csv.writer(f)
        w.writerows([('file', 'label', 'split'), *((str(p.relative_to(parts)), p.parent.name, p.parent.parent.name) for p in sorted(parts.rglob('*.png')))])
        w.writerows(changed)
    return file


def test_folder_table_and_stream_agree(parts, tmp_path, monkeypatch):
    "Folder and table in every number but seconds and bytes, and streams by any number of workers; the two ways in what rounding leaves."
    run = lambda name, *more: lotus_nb(*more, *SMALL, '--forget', 'class:b', '--augment', 'none', '--gold', 'train', '--out', tmp_path/name)
    assert run('folder', '--data', parts).exit_code == 0
    assert run('table', '--data', table_of(parts, tmp_path/'t.csv'), '--root', parts).exit_code == 0
    monkeypatch.setattr(cli, '_HELD', 0)
    for name, workers in (('here', 0), ('workers', 2)):
        got = run(name, '--data', parts, '--workers', workers)
        assert got.exit_code == 0 and 'read as they are needed' in got.stdout
    held, table, here, workers = (rows(tmp_path/n).assign(task='') for n in ('folder', 'table', 'here', 'workers'))
    assert same_results(held, table) and same_results(here, workers)
    a, b = (f[f.metric.str.endswith('accuracy') | f.metric.isin(['jsd', 'activation_distance'])].set_index(['method', 'metric']).value for f in (held, here))
    assert len(a) > 10 and (a - b).abs().max() < .01
    assert note(tmp_path/'folder')['images'] == note(tmp_path/'table')['images'] == dict(train=60, val=18, test=18)


@pytest.mark.parametrize('augment', ['crop', 'view'])
def test_streams_are_augmented(parts, tmp_path, monkeypatch, augment):
    monkeypatch.setattr(cli, '_HELD', 0)
    got = lotus_nb('--data', parts, *SMALL, '--forget', '0.1', '--augment', augment, '--workers', 0, '--size', 16, '--resize', 20, '--out', tmp_path)
    assert got.exit_code == 0 and '16 pixels of 20' in got.stdout


# What `--forget` may be.

def asked(parts, text):
    splits, positions = cli._read_files(str(parts), None, str(text), 0, _Files(), dict(size=8, check='none'), None)
    return positions if isinstance(positions, float) else [splits.train.files[i].removeprefix('train/') for i in positions]


def test_kinds_are_told_apart_by_content(parts, tmp_path):
    two = ['a/01.png', 'b/02.png']
    np.save(tmp_path/'p.npy', [1, 22])
    shutil.copy(tmp_path/'p.npy', tmp_path/'called.txt')
    (tmp_path/'numbers').write_text('1\r\n22\r\n')
    (tmp_path/'names.npy').write_text('\n'.join(f'train/{f}' for f in two))
    for name in ('p.npy', 'called.txt', 'numbers', 'names.npy'): assert asked(parts, tmp_path/name) == two, name
    assert asked(parts, '.25') == .25
    assert asked(parts, 'class:b') == [f'b/{i:02}.png' for i in range(20)] and len(asked(parts, 'class:a, c')) == 40


def test_class_names_that_are_numbers_are_names(tmp_path):
    for c, k in (('10', 0), ('9', 1), ('a,b', 2)):
        for i in range(6):
            (tmp_path/'train'/c).mkdir(parents=True, exist_ok=True); (tmp_path/'val'/c).mkdir(parents=True, exist_ok=True)
            picture(k, i).save(tmp_path/'train'/c/f'{i}.png'); picture(k, i, 1).save(tmp_path/'val'/c/f'{i}.png')
    for c in ('9', '10', 'a,b'): assert {f.split('/')[0] for f in asked(tmp_path, f'class:{c}')} == {c}


BAD_LISTS = [
    ('train/a/01.png\n../x.png', ["Line 2 of", "'../x.png' is not a file below"]), ('/etc/passwd', ['Line 1 of', 'refused']),
    ('\ntrain/a/01.png\n\ntrain/a/99.png', ["'train/a/99.png' (line 4)", 'There is no such file']),
    ('train/a/01.png\nval/a/01.png', ["'val/a/01.png' (line 2)", "Did you mean 'train/a/01.png'?", 'held out']),
    ('train/a/01.png\ntrain/a/./01.png', ['listed more than once', '(line 2)']), ('', ['is empty']), ('a\0b', ['is neither text']),
    ('1\n60', ['positions lie outside 0…59']), ('1\n1', ['occur more than once']), ('-1', ['positions lie outside'])]


@pytest.mark.parametrize('text, said', BAD_LISTS, ids=range(len(BAD_LISTS)))
def test_bad_lists_are_refused(parts, tmp_path, text, said):
    (tmp_path/'l.txt').write_text(text)
    refused(['--data', parts, '--forget', tmp_path/'l.txt'], tmp_path, *said)


def refused(args, out, *said):
    "Exit status 2, one paragraph that says what to do, nothing trained."
    got = lotus_nb(*SMALL, *args, '--out', out/'run')
    error = got.stderr[got.stderr.rindex('Error: '):] if 'Error: ' in got.stderr else ''
    assert got.exit_code == 2 and error.rstrip().endswith(('.', '?')), got.output
    assert all(s in error for s in said), error
    assert 'most recent call last' not in got.output and not list(out.glob('run/**/*.safetensors'))


def mistakes(parts, photos, tmp_path):
    "Arguments, and what must be said."
    zipped, cut, other = tmp_path/'photos.zip', tmp_path/'t.csv', tmp_path/'split.npz'
    zipped.write_bytes(b'PK\3\4\0\0')
    cut.write_text('path,label\na/00.png,a\n')
    load = image_folder(parts, size=8, check='none').train
    from lotus_nb.data.splits import forget_class
    forget_class(load, 'a').save(other)
    (tmp_path/'w.pt').write_bytes(b'no weights')
    yield ['--data', 'cifar11'], ["Unknown data set 'cifar11'. Did you mean 'cifar10", 'Or give a folder']
    yield ['--data', tmp_path/'none'], ['There is no folder and no table']
    yield ['--data', zipped], ['is neither a folder nor a CSV. Unpack']
    yield ['--data', cut], ["0 columns named 'file'"]
    yield ['--data', photos, '--root', photos], ['`--root` goes with a table']
    yield ['--data', 'digits', '--size', 32], ['`--size` is for images that come as files']
    yield ['--data', 'digits', '--skip-unreadable'], ['`--skip-unreadable` is for']
    yield ['--data', tmp_path], ['lies in the folder of the images']
    for forget, said in (('1.5', 'it must lie between 0 and 1'), ('none.txt', 'with what to forget'), ('class:zebra', "Unknown class 'zebra'"), ('published', 'Only mufac has'),
                         (other, 'Its ids would name other images here')):
        yield ['--data', photos, '--forget', forget], [said]
    yield ['--data', photos, '--model', 'resnet_18'], ["Unknown model 'resnet_18'"]
    yield ['--data', photos, '--model', 'vit_tiny_patch16_224', '--size', 8], ['cannot take images of 8 pixels', '--size']
    yield ['--data', photos, '--weights', tmp_path/'w.pt'], ['is neither a safetensors nor a torch file']
    yield ['--data', photos, '--weights', tmp_path/'none.pt'], ['There is no weights file']
    yield ['--data', photos, '--resize', 16], ['`--resize 16` is less than']
    yield ['--data', photos, '--augment', 'corp'], ["Did you mean 'crop'?"]
    yield ['--data', photos, '--twins', 'kep'], ["Did you mean 'keep'?"]
    yield ['--data', 'tinyimagenet', '--root', tmp_path], ['TinyImageNet is not in']
    yield ['--data', 'mufac', '--root', tmp_path], ['MUFAC is not in']


def test_mistakes_read_as_sentences(parts, photos, tmp_path):
    for args, said in mistakes(parts, photos, tmp_path): refused(args, tmp_path, *said)


def test_weights_of_other_data_are_refused_before_images_are_read(done, parts, tmp_path):
    other = next((done[0]/'models').glob('images-*/original-*.safetensors'))
    shutil.copytree(parts, tmp_path/'four'); shutil.copytree(parts/'train'/'a', tmp_path/'four'/'train'/'d')
    (tmp_path/'four'/'train'/'a'/'broken.png').write_bytes(b'broken')
    refused(['--data', tmp_path/'four', '--weights', other], tmp_path, 'head.weight is (3, 64) but must be (4, 64)')


def test_unreadable_files_are_named_and_left_out_on_request(parts, tmp_path):
    root = shutil.copytree(parts, tmp_path/'set')
    (root/'train'/'a'/'broken.png').write_bytes(b'broken')
    (root/'train'/'a'/'empty.png').touch()
    refused(['--data', root], tmp_path, "'train/a/broken.png' (no image that can be recognised)", 'pass `--skip-unreadable`')
    for _ in range(2):                                                                                            # computed, and stored
        got = lotus_nb(*SMALL, '--data', root, '--skip-unreadable', '--out', tmp_path/'run')
        assert got.exit_code == 0 and '2 files were left out' in got.stdout and 'broken.png' in got.stdout, got.output
    assert [f for f, _ in note(tmp_path/'run')['left_out']] == ['train/a/broken.png', 'train/a/empty.png']


def test_copies_are_refused_or_kept(parts, tmp_path):
    root = shutil.copytree(parts, tmp_path/'set')
    shutil.copy(root/'train'/'a'/'01.png', root/'train'/'b'/'copy.png')
    (tmp_path/'l.txt').write_text('train/a/01.png')
    got = lotus_nb(*SMALL, '--data', root, '--forget', tmp_path/'l.txt', '--out', tmp_path/'run')
    assert got.exit_code == 2 and 'pixel for pixel' in got.stderr and 'pass `--twins keep`' in got.stderr
    assert lotus_nb(*SMALL, '--data', root, '--forget', tmp_path/'l.txt', '--twins', 'keep', '--out', tmp_path/'run').exit_code == 0


# What is another task, and what is not.

def cell(data, root=None, out=Path('out'), options=_Files(), **how):
    how = dict(model='small_cnn', weights=None, gold=None, forget='.1', recipe='tiny', batch_size=8, device='cpu', digests=()) | how
    name, _, task = _task_of(str(data), root, out, options, **how)
    return _cell(out, name, task, 0, 'lotus', 'lotus', {}, None).name


def changes_are_seen(root):
    "Whether each change of a folder makes another task of it."
    seen, file = [cell(root)], root/'train'/'a'/'01.png'
    (root/'readme.txt').write_text('x'); (root/'.hidden').write_text('x')
    if cell(root) != seen[0]: return False                                                                       # no images
    file.write_bytes(file.read_bytes() + b'\0'); os.utime(file, ns=(0, 0)); seen.append(cell(root))
    os.utime(file, ns=(0, 1)); seen.append(cell(root))
    file.rename(file.with_name('001.png')); seen.append(cell(root))
    shutil.copy(root/'train'/'b'/'01.png', root/'train'/'b'/'more.png'); seen.append(cell(root))
    return len(set(seen)) == len(seen)


def test_changed_images_are_another_task(parts, tmp_path, monkeypatch):
    assert changes_are_seen(shutil.copytree(parts, tmp_path/'one'))
    monkeypatch.setattr(cli, '_content', lambda data, root: '')                                                   # the bug
    assert not changes_are_seen(shutil.copytree(parts, tmp_path/'two'))


def test_changed_tables_lists_and_options_are_another_task(parts, tmp_path):
    one, two = table_of(parts, tmp_path/'t.csv'), []
    two.append(cell(one, str(parts)))
    shutil.copystat(one, tmp_path/'t.csv'); text = one.read_text()
    one.write_text(text.replace('train/a/01.png,a,train', 'train/a/01.png,b,train')); two.append(cell(one, str(parts)))
    one.write_text(text)
    (parts/'train'/'a'/'01.png').touch(); two.append(cell(one, str(parts)))
    two += [cell(one, str(parts), options=_Files(**{k: v})) for k, v in dict(size=8, resize=64, augment='view', twins='keep', skip_unreadable=True).items()]
    two += [cell(one, str(parts), digests=('x',)), cell(one, str(parts), forget='.2'), cell(one, str(parts), model='cifar_resnet20')]
    assert len(set(two)) == len(two)
    assert cell(one, str(parts), options=_Files(workers=3)) == cell(one, str(parts))                              # changes no number
    assert cell(os.path.relpath(one), str(parts)) == cell(one, str(parts))


def test_tasks_of_the_resident_sets_are_what_they_were():
    how = dict(model='cifar_resnet20', weights=None, gold='train', forget='.1', recipe='r', batch_size=128, device='cpu', digests=('a', 'b'))
    name, title, task = _task_of('cifar10', None, Path('out'), _Files(), **how)
    before = partial(image_task, data='cifar10', root=None, **how)
    assert name == title == 'cifar10' and repr(task.keywords) == repr(before.keywords) and task.func is before.func
    assert image_task.__qualname__ == 'image_task'


def test_another_list_trains_the_original_of_a_split_folder_once(parts, tmp_path):
    for forget in ('class:a', 'class:b'): assert lotus_nb(*SMALL, '--data', parts, '--forget', forget, '--out', tmp_path).exit_code == 0
    assert len(list(tmp_path.rglob('original-*.safetensors'))) == 1 and len(list(tmp_path.rglob('*-lotus-s0.safetensors'))) == 2
    shutil.copytree(parts, again := tmp_path/'set'); os.utime(again/'train'/'a'/'01.png', ns=(0, 0))             # names as before, another picture perhaps
    assert lotus_nb(*SMALL, '--data', again, '--forget', 'class:a', '--out', tmp_path/'out').exit_code == 0


# Around it.

def test_it_fits_a_narrow_terminal(done, photos, these):
    got = lotus_nb('--data', photos, '--forget', these, *SMALL, '--gold', 'train', '--out', done[0], columns=56)
    assert got.exit_code == 0
    long = [l for l in got.stdout.splitlines() if len(l) > 56 and str(done[0]) not in l and not l.startswith('* best')]
    assert long == [] and len(got.stdout.splitlines()) > 20


def start(*args): return Python('from lotus_nb.cli import main; main()', 'run', *args, env={'COLUMNS': '120'})


def test_interrupted_and_resumed(done, photos, these, tmp_path):
    args = ['--data', photos, '--forget', these, *SMALL, '--gold', 'train', '--out', tmp_path]
    p = start(*args)
    for line in p.stderr:
        if 'training gold' in line: break
    p.send_signal(signal.SIGINT)
    _, err = p.communicate()
    assert p.returncode == 130 and 'The same command goes on from here' in err and 'Traceback' not in err
    p = start(*args)
    said, err = p.communicate()
    assert p.returncode == 0 and 'training original' not in err and 'Traceback' not in err
    assert err.count('looking at images') == 1                                       # checked once, and not again
    assert same_results(rows(done[0]), rows(tmp_path))
    assert start(*args).communicate()[1] == ''


# Published layouts.

def test_cifake_by_name(tmp_path):
    for p, (part, n) in enumerate((('train', 20), ('test', 12))):
        for k, c in enumerate(('FAKE', 'REAL')):
            (tmp_path/'data'/'cifake'/part/c).mkdir(parents=True)
            for i in range(n): picture(k, i, p).save(tmp_path/'data'/'cifake'/part/c/f'{i}.png')
    got = lotus_nb('--data', 'cifake', '--root', tmp_path/'data', *SMALL, '--forget', 'class:FAKE', '--out', tmp_path/'out')
    assert got.exit_code == 0 and '40 images to train on, 12 to tune and 12 to judge by, in 2 classes; 32 pixels' in got.stdout, got.output


def test_mufac_and_its_own_forget_set(tmp_path, monkeypatch):
    import test_data_sets as sets

    import lotus_nb.data.mufac as mufac
    (tmp_path/'data').mkdir()
    n = sets.mufac_tree(tmp_path/'data', sets.AGAIN)
    monkeypatch.setattr(mufac, 'clean_mufac', partial(mufac.clean_mufac, n_forget=n))
    got = lotus_nb('--data', 'mufac', '--root', tmp_path/'data', *SMALL, '--size', 32, '--forget', 'published', '--out', tmp_path/'out')
    assert got.exit_code == 0, got.output
    split = load_split(stored(tmp_path/'out', 'forget-s0.npz'))
    assert (len(split.forget), len(split.retain)) == (9, 21)
