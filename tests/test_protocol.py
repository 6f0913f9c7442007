"The paper's protocol: what is run, that it goes on after any stop, that no row is made twice, and that random forget sets and gold are what they say."
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from processes import Python
from torch.nn import functional as F

from lotus_nb import protocol, train
from lotus_nb.bench import same_results
from lotus_nb.core import digest
from lotus_nb.data.core import Augment
from lotus_nb.data.digits import digits
from lotus_nb.loop import predict
from lotus_nb.methods.core import inner_method, list_methods
from lotus_nb.protocol import AS_PUBLISHED, ITEMS, PAPER, SEEDS, Cell, Maker, cells_of, plan_of, run_cells

CELL = Cell('small_cnn', 'digits', scale='tiny', seeds=(3407,))
STEP = ROOT/'tools'/'gpu'/'step.py'
SHORT = ['--scale', 'tiny', '--run', CELL.name, '--root', 'nowhere', '--seed', '3407', '--method', 'ssd', 'lotus', '--device', 'cpu', '--threads', '1']


def step(folder, *more):
    code = f"import runpy; runpy.run_path({str(STEP)!r}, run_name='__main__')"
    return Python(code, *SHORT, '--work', folder/'work', '--results', folder/'results', *more)


def finish(p, status=0):
    out, err = p.communicate()
    assert p.returncode == status, out + err
    return out


def stored(folder, name=CELL.name): return pd.read_csv(folder/'results'/name/'results.csv', dtype={'hparams': str})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run without a break."
    folder = tmp_path_factory.mktemp('whole')
    finish(step(folder))
    return folder


# the grid

def test_every_cell_has_settings_that_its_methods_take():
    for cell in cells_of():
        for u in plan_of(cell):
            if not u.how: continue
            settings = {k: v for k, v in u.how[1].items() if k != 'batch_size'}
            inner_method(u.how[0], settings)
            if u.published: assert settings['recipe'].startswith('as-published') or u.how[0] in ('finetune', 'lotus'), u


def test_all_methods_are_run_as_described_and_those_of_the_paper_as_published():
    labels = [u.label for u in plan_of(cells_of('table4')[0]) if u.how]
    assert labels.count('lotus') == 3 and set(labels) == {*list_methods(), *(m + AS_PUBLISHED for m in PAPER)}


def test_the_grid_of_the_issue():
    names = {c.name for c in cells_of()}
    assert names >= {f'{m}-{d}-{p}' for m in ('resnet18', 'vit') for d in ('cifar10', 'cifar100') for p in (10, 50)}
    assert names >= {'resnet18-mufac', 'vit-mufac', 'resnet18-tinyimagenet-10', 'vit-b16-imagenet1k', 'resnet18-cifar10-cat'}
    assert all(c.seeds == SEEDS == (3407, 13, 12) for c in cells_of())


def test_names_are_those_by_which_pages_look_for_runs():
    from lotus_nb.paper import published, run_name
    for item in ITEMS.values():
        if item.printed is None: continue
        df = published(**item.printed)
        asked = {run_name(*k) for k in zip(df.model, df.dataset, df.forget_fraction) if '+' not in k[1]}
        assert asked <= {c.base for c in cells_of()}, asked - {c.base for c in cells_of()}


def test_the_protocol_of_the_paper():
    r = protocol.training_of(cells_of('table4')[0])
    assert (r.epochs, r.lr, r.batch_size, r.warmup, r.patience, r.opt) == (150, .1, 512, 30, 50, 'sgd')


# which images

def forget_ids(cell, seed): return Maker(cell, replace(train.RECIPES['tiny'], epochs=1))(seed).forget.ids


def check_random(cell):
    found = {s: digest(forget_ids(cell, s)) for s in SEEDS}
    protocol.check_forget_sets(cell.split, found)


def test_random_forget_sets_differ_and_fixed_ones_do_not():
    check_random(CELL); check_random(replace(CELL, split='first-k'))
    y = digits(0).train.y
    rows = protocol.positions(digits(0).train, replace(CELL, split='first-k'), 0)
    for c in range(10):
        mine = (y == c).nonzero()[:, 0]
        assert torch.equal(rows[torch.isin(rows, mine)], mine[:round(.1*len(mine))])


def test_mutant_one_forget_set_for_all_seeds(monkeypatch, tmp_path):
    real = protocol.positions
    fixed = lambda data, cell, seed: real(data, cell, 0)
    monkeypatch.setattr(protocol, 'positions', fixed)
    protocol._made.cache_clear()
    cell = replace(CELL, seeds=SEEDS[:2])
    with pytest.raises(ValueError, match='no independent repetitions'): check_random(cell)
    with pytest.raises(ValueError, match='no independent repetitions'):
        run_cells([cell], tmp_path/'work', tmp_path/'results', methods=['ssd'], kinds=['described'])
    protocol._made.cache_clear()


def test_gold_has_not_seen_the_forget_images(monkeypatch, tmp_path):
    seen = {}
    real = train.train
    def spy(model, data, *args, **kw): seen[len(seen)] = set(data.ids.tolist()); return real(model, data, *args, **kw)
    monkeypatch.setattr(train, 'train', spy)
    task = Maker(CELL, train.RECIPES['tiny'])(3407, tmp_path)
    original, gold = seen[0], seen[1]
    assert original >= set(task.forget.ids.tolist()) and not gold & set(task.forget.ids.tolist())
    loss = {w: F.cross_entropy(*predict(getattr(task, w), task.loader('forget', train=False))) for w in ('model', 'gold')}
    assert loss['gold'] > 2*loss['model']


def test_mutant_gold_trained_on_all_images(monkeypatch, tmp_path):
    real = train._trained
    everything = {}
    def wrong(part, data, *args):
        everything.setdefault('train', data)
        return real(part, everything['train'], *args)
    monkeypatch.setattr(train, '_trained', wrong)
    protocol._made.cache_clear()
    with pytest.raises(ValueError, match='No gold model .* was trained on the 360 images to retain'):
        run_cells([CELL], tmp_path/'work', tmp_path/'results', methods=['ssd'], kinds=['described'])
    protocol._made.cache_clear()


# stopping and going on

def test_killed_and_resumed_as_without_a_break(whole, tmp_path):
    "Killed in the first training, and then in the middle of whatever follows the unit that it says is done."
    for said in (None, 'models: ready', ' ssd: ', 'models-as-published: ready'):
        p = step(tmp_path)
        if said: assert any(said in line for line in p.stdout)
        else:
            while not (tmp_path/'work').exists() and p.poll() is None: time.sleep(.01)
        time.sleep(.1)
        p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL, f'It had ended before it could be killed after {said}: {p.communicate()}'
    finish(step(tmp_path))
    assert same_results(stored(whole), stored(tmp_path))


def test_steps_end_between_units_and_say_what_remains(whole, tmp_path):
    out = finish(step(tmp_path/'a', '--minutes', 0, '--leave', tmp_path/'out'), 75)
    assert 'units remain' in out and (tmp_path/'out'/'pieces'/'list.json').exists()
    assert protocol.carry_in(tmp_path/'out'/'pieces', tmp_path/'b'/'work') == []
    assert same_results(stored(whole), _worked_off(tmp_path/'b'))


def _worked_off(folder):
    while not run_cells([CELL], folder/'work', folder/'results', root='nowhere', methods=['ssd', 'lotus'], minutes=.02).finished: pass
    return stored(folder)


def times(folder): return {f.name: f.stat().st_mtime_ns for f in sorted((folder/'work'/'cells').iterdir())}


def check_not_repeated(folder, run):
    "A finished run, started again, solves nothing and touches no row."
    before, rows = times(folder), stored(folder)
    solved = run()
    assert solved == [] and times(folder) == before and same_results(rows, stored(folder))
    assert not stored(folder).duplicated(['method', 'seed', 'metric']).any()


def again(folder, monkeypatch):
    from lotus_nb import bench
    solved, real = [], bench.solve
    monkeypatch.setattr(bench, 'solve', lambda task, m, **kw: solved.append(m) or real(task, m, **kw))
    run_cells([CELL], folder/'work', folder/'results', root='nowhere', methods=['ssd', 'lotus'])
    return solved


def test_a_finished_row_is_not_repeated(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path/'copy')
    check_not_repeated(tmp_path/'copy', lambda: again(tmp_path/'copy', monkeypatch))


def test_mutant_a_finished_row_is_repeated(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path/'copy')
    real = protocol._do
    def forgetful(unit, work):
        if unit.how:
            for f in protocol._cell_files(unit, work): f.unlink()
        real(unit, work)
    monkeypatch.setattr(protocol, '_finished', lambda unit, work: False)
    monkeypatch.setattr(protocol, '_do', forgetful)
    with pytest.raises(AssertionError): check_not_repeated(tmp_path/'copy', lambda: again(tmp_path/'copy', monkeypatch))


@pytest.mark.parametrize('cut', ['cells/*-lotus-s3407-*.json', 'models/gold-*.safetensors', 'measured/*lotus*.json', 'spent.json'])
def test_a_half_written_file_is_not_read(whole, tmp_path, cut):
    shutil.copytree(whole, tmp_path/'copy')
    file = next((tmp_path/'copy'/'work').glob(cut))
    file.write_bytes(file.read_bytes()[:-20])
    said = []
    done = run_cells([CELL], tmp_path/'copy'/'work', tmp_path/'copy'/'results', root='nowhere', methods=['ssd', 'lotus'], say=said.append)
    assert 'was not whole' in said[0] and done.finished and same_results(stored(whole), stored(tmp_path/'copy'))


def test_a_lost_model_does_not_mix_with_rows_of_another(whole, tmp_path):
    shutil.copytree(whole/'results', tmp_path/'results')
    note = tmp_path/'results'/CELL.name/'provenance.json'
    facts = json.loads(note.read_text())
    facts['original']['3407'] = 'another'
    note.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match='rows of other models'):
        run_cells([CELL], tmp_path/'work', tmp_path/'results', methods=['finetune'], kinds=['described'])


def test_machines_that_come_and_go(whole, tmp_path):
    "Each step on a bare machine: only the pieces travel, each below the limit."
    for i in range(400):
        here, before = tmp_path/f'machine{i}', tmp_path/f'pieces{i - 1}'
        if i: assert protocol.carry_in(before, here) == []
        done = run_cells([CELL], here, tmp_path/'results', root='nowhere', methods=['ssd', 'lotus'], minutes=0)
        pieces = protocol.carry_out(here, tmp_path/f'pieces{i}', limit=100_000)
        assert max(f.stat().st_size for f in pieces if f.suffix != '.json') <= 100_000
        shutil.rmtree(here)
        if done.finished: break
    assert i > 1 and same_results(stored(whole), stored(tmp_path))


def test_a_list_cannot_write_outside(tmp_path):
    (tmp_path/'list.json').write_text(json.dumps({'../out.txt': dict(sha256='0', pieces=1)}))
    with pytest.raises(ValueError, match='outside of the work folder'): protocol.carry_in(tmp_path, tmp_path/'work')


# what is written

def test_rows_and_their_source(whole):
    rows, note = stored(whole), json.loads((whole/'results'/CELL.name/'provenance.json').read_text())
    assert set(rows.method) == {f'{m}{k}' for m in ('noop', 'gold', 'ssd', 'lotus') for k in ('', AS_PUBLISHED, protocol.RECIPE_ONLY)}
    assert rows.task.unique().tolist() == [CELL.name] and {'device_name', 'versions', 'commit', 'n', 'made', 'training', 'original'} <= set(note)
    from lotus_nb.paper import check_rows
    check_rows(rows, CELL.name)
    compact = list((whole/'work'/'evidence').glob('*'))
    assert compact and all('.f16.' in f.name for f in compact)
    ev, phi = protocol.load_compact(protocol.compact_stem(whole/'work', CELL.name, 3407, 'lotus'))
    assert len(phi['retain']) == 360 and set(ev.parts) == {'forget', 'retain', 'val', 'test'}


def test_the_published_evaluation_is_switched_on_only_there(whole):
    value = stored(whole).set_index(['method', 'metric']).value
    for m in ('lotus', 'ssd'):
        acc = value[m + AS_PUBLISHED, 'test_accuracy']
        exact = value[m + protocol.RECIPE_ONLY, 'test_accuracy']        # the same model by the definitions: no augmentation touches test images
        assert acc == round(acc, 2) == round(exact, 2) and exact != acc
        assert value[m + AS_PUBLISHED, 'jsd_as_published'] != value[m + protocol.RECIPE_ONLY, 'jsd']
    assert value['lotus', 'test_accuracy'] != round(value['lotus', 'test_accuracy'], 2)


def test_train_mode_ruins_the_attack(tmp_path):
    "On a model left in train mode, the published evaluation judges another model than the one that was made."
    task = Maker(CELL, train.RECIPES['tiny'])(3407)
    before = digest(task.model)
    as_is, ruined = (protocol.measure_as_published(task.model, task, train_mode=t) for t in (False, True))
    assert digest(task.model) == before and as_is['mia_entropy'] > .5 > ruined['mia_entropy']
    assert as_is['retain_accuracy'] == 1. and as_is['avg_gap'] != ruined['avg_gap']


def test_scrub_as_published_is_the_original(tmp_path):
    done = run_cells([CELL], tmp_path/'work', tmp_path/'results', methods=['scrub'], kinds=['as-published'])
    value = done.rows[CELL.name].set_index(['method', 'metric']).value
    for k in protocol.MEASURED: assert value['scrub' + AS_PUBLISHED, k] == value['noop' + AS_PUBLISHED, k]


def test_the_command_that_is_stored_would_run_the_same(whole, tmp_path):
    note = json.loads((whole/'results'/CELL.name/'provenance.json').read_text())
    words = shlex.split(note['command'])
    assert words[:2] == ['python', 'tools/gpu/step.py'] and str(whole) not in note['command'] and note['commands'] == [note['command']]
    for option, values in {'--run': [CELL.name], '--seed': ['3407'], '--method': ['ssd', 'lotus'], '--scale': ['tiny'], '--root': ['FOLDER'], '--work': ['FOLDER']}.items():
        i = words.index(option)
        assert words[i + 1:i + 1 + len(values)] == values, note['command']
    shutil.copytree(whole, tmp_path/'copy')
    run_cells([CELL], tmp_path/'copy'/'work', tmp_path/'copy'/'results', root='nowhere', methods=['finetune'], kinds=['described'], command='another')
    note = json.loads((tmp_path/'copy'/'results'/CELL.name/'provenance.json').read_text())
    assert note['commands'] == [shlex.join(words), 'another'] and note['devices']


def test_evidence_of_four_models_stays_with_the_results(tmp_path, monkeypatch):
    from lotus_nb.metrics.core import load_evidence
    done = run_cells([CELL], tmp_path/'work', tmp_path/'results', root='nowhere', methods=['relabel', 'lotus', 'ssd'], kinds=['described'])
    folder = tmp_path/'results'/CELL.name/'evidence'
    assert sorted(f.name for f in folder.iterdir()) == [f'{m}.npz' for m in ('gold', 'lotus', 'noop', 'relabel')]
    assert all(f.stat().st_size < 16*2**20 for f in folder.iterdir())
    note = json.loads((folder.parent/'provenance.json').read_text())
    for who in protocol.DRAWN:
        ev, (compact, _) = load_evidence(folder/f'{who}.npz'), protocol.load_compact(protocol.compact_stem(tmp_path/'work', CELL.name, 3407, who))
        assert note['evidence'][who] == ev.model == compact.model and set(ev.parts) == {'forget', 'retain', 'val', 'test'} and ev.logits['retain'].dtype == np.float16
        for p in ev.parts: assert np.allclose(ev.logits[p], compact.logits[p]) and (ev.ids[p] == compact.ids[p]).all()
    first = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert protocol.keep_evidence(CELL, plan_of(CELL, methods=['relabel', 'lotus'], kinds=['described']), tmp_path/'work', folder.parent) == note['evidence']
    assert first == {f: f.stat().st_mtime_ns for f in folder.iterdir()} and done.finished


def test_kept_evidence_of_the_real_run_fits():
    "CIFAR-100 as it would be: 45,000 × 100 answers about retain images."
    rng = np.random.default_rng(0)
    sizes = dict(forget=5000, retain=45_000, val=5000, test=5000)
    ev = protocol.Evidence({p: rng.normal(size=(n, 100)).astype(np.float32) for p, n in sizes.items()}, {p: np.zeros(n, int) for p, n in sizes.items()}, {p: np.arange(n) for p, n in sizes.items()})
    assert len(protocol._thinned(ev, protocol.LIMIT).ids['retain']) == 45_000
    cut = protocol._thinned(ev, 8*2**20)
    assert 2*sum(a.size for a in cut.logits.values()) < 8*2**20 and cut.ids['retain'].tolist() == list(range(0, 45_000, cut.ids['retain'][1]))
    assert all(len(cut.ids[p]) == sizes[p] for p in ('forget', 'val', 'test'))


def test_cells_that_figure_2_does_not_need_keep_no_evidence(tmp_path):
    cell = replace(CELL, forget='.5')
    assert protocol.keep_evidence(cell, plan_of(cell), tmp_path, tmp_path) == {}
    assert {c.base for c in cells_of('fig2')} == {'resnet18-cifar100-10'}


def test_an_unknown_network_has_no_silent_recipe():
    for model, scale in (('small_cnn', 'full'), ('resnet50', 'fast')):
        with pytest.raises(ValueError, match=f"No recipe is known for '{model}' at scale '{scale}'"): protocol.training_of(Cell(model, 'cifar10', scale=scale))
    for cell in [*cells_of(), *cells_of(scale='fast')]: protocol.training_of(cell)
    for long, short in zip(cells_of('table4'), cells_of('table4', 'fast')): assert protocol.training_of(short).epochs <= protocol.training_of(long).epochs/2
    long, short = (protocol.training_of(Cell('vit_random', 'cifar10', scale=s)) for s in ('full', 'fast'))
    assert short.epochs <= long.epochs/2


def test_what_remains_is_judged_by_the_slower_run():
    "The first seed of a small network is done; a larger one takes four times as long."
    steps = protocol.Steps()
    took = lambda run, factor: {f'{run}|3407|{l}': [s*factor, True] for l, s in (('models', 10.), ('finetune', 2.), ('lotus', 3.), ('scrub', 9.))}
    steps.spent = took('small', 1.)
    units = list(took('large', 4.))
    first = steps.remaining(units)
    assert first.least and first.seconds == 24 and 'at least' in str(first)
    steps.spent['large|3407|models'] = took('large', 4.)['large|3407|models']
    second = steps.remaining(units[1:])
    assert not second.least and second.seconds == pytest.approx(4*(2 + 3 + 9))


# data that are not here, and sets that are pages of their own

def test_a_set_that_is_not_here_is_left_with_its_reason(tmp_path):
    done = run_cells([*cells_of('sec12')[:1], CELL], tmp_path/'work', tmp_path/'results', root=tmp_path, methods=['ssd'], kinds=['described'])
    assert done.finished and list(done.rows) == [CELL.name] and list(done.left) == ['resnet18-mufac']


def test_a_set_with_its_own_forget_images(monkeypatch):
    s = digits(0)
    faces = SimpleNamespace(splits=s, forget=SimpleNamespace(positions=lambda data: torch.arange(7)))
    monkeypatch.setattr(protocol, 'import_module', lambda name: SimpleNamespace(mufac=lambda root=None, device='cpu': faces))
    task = Maker(replace(CELL, data='mufac', forget='set'), replace(train.RECIPES['tiny'], epochs=1))(0)
    assert torch.equal(task.forget.ids, s.train.ids[:7])


def test_imagenet_takes_a_few_of_each_class_and_trains_nothing(monkeypatch):
    s = digits(0, n_train=900, n_val=400)
    monkeypatch.setattr(protocol, 'import_module', lambda name: SimpleNamespace(imagenet=lambda root=None, seed=0: s))
    monkeypatch.setattr(protocol, '_pretrained', lambda make, root: make('small_cnn', norm='batch'))
    cell = replace(cells_of('table3')[0], seeds=(0,))
    task = Maker(cell, train.RECIPES['tiny'])(0)
    assert len(task.forget) == 50 and len(task.retain) == 450 and task.gold is None and len(task.val) == 50
    found = protocol.measure_as_published(task.model, task, train_mode=False)
    assert set(found) == set(protocol.MEASURED) - {'avg_gap', 'jsd_as_published'}
    protocol._made.cache_clear()


def test_vit_without_pretrained_weights_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(protocol, 'load_set', lambda *a: None)
    def none(*a): raise ConnectionError('there is no network')
    monkeypatch.setattr(protocol, '_pretrained', none)
    assert protocol.available(cells_of('table4')[3], None, said.append).name == 'vit_random-cifar10-10' and 'random' in said[0]


def test_images_are_flipped_at_scale_fast_only(monkeypatch):
    monkeypatch.setattr(protocol, 'cifar', lambda *args, **kw: digits(0)._replace(train=replace(digits(0).train, augment=Augment(4, flip=True))))
    flips = {s: protocol.load_set(Cell('resnet18', 'cifar10', scale=s), 0, None, 'cpu')[0].train.augment for s in ('full', 'fast')}
    assert flips == {'full': Augment(4), 'fast': Augment(4, flip=True)}


def test_real_cifar_in_parts(real_data, tmp_path):
    "Archives that were cut into parts below 64 MiB give the same task."
    import zipfile
    whole = zipfile.ZipFile(next(real_data.glob('cifar10*.zip')))
    for k in (0, 1):
        with zipfile.ZipFile(tmp_path/f'cifar10.part{k}.zip', 'w', zipfile.ZIP_STORED) as z:
            for n in whole.namelist():
                if not n.endswith('.webp') or int(n[:3]) % 2 == k: z.writestr(n, whole.read(n))
    sizes = [f.stat().st_size for f in tmp_path.iterdir()]
    cell = replace(cells_of('table4')[0], scale='tiny')
    (a, _), (b, _) = (protocol.load_set(cell, 13, r, 'cpu') for r in (real_data, tmp_path))
    assert max(sizes) < 64*2**20 and a.train.source == b.train.source and a.train.pixel_digests() == b.train.pixel_digests()
    assert a.train.augment.flip is False and len(a.train) == 500


# the command

def test_the_script_needs_nothing_of_the_notebooks(tmp_path):
    code = ("import sys\nfor m in ('nbdev', 'fastcore', 'typer', 'matplotlib', 'fastai'): sys.modules[m] = None\n"
            f"sys.argv = ['step.py', *{SHORT!r}, '--work', {str(tmp_path/'w')!r}, '--results', {str(tmp_path/'r')!r}, '--minutes', '0']\n"
            f"import runpy; runpy.run_path({str(STEP)!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 75, done.stdout + done.stderr


def test_a_table_from_the_command_line_at_the_smallest_scale(tmp_path):
    "As a reader types it, for one method: two cells from training to table."
    words = ['paper', '--item', 'table4', '--scale', 'tiny', '--method', 'lotus', '--kind', 'described', '--device', 'cpu', '--root', 'nowhere']
    run = [sys.executable, '-c', 'from lotus_nb.cli import main; main()', *words]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ('small_cnn-digits-10-tiny', 'vit_small-digits-10-tiny'):
        assert f'{name}, ours as described' in done.stdout
        folder = tmp_path/'lotus-paper'/'results'/name
        rows, note = pd.read_csv(folder/'results.csv'), json.loads((folder/'provenance.json').read_text())
        assert set(rows.method) == {'noop', 'gold', 'lotus'} and note['not_finished'] == []
        assert note['command'] == 'lotus-nb paper --item table4 --scale tiny --root FOLDER --kind described --method lotus --device cpu'


def test_unattended_steps_go_on_until_all_is_done(whole, tmp_path):
    "The loop itself, with real steps: the first is as short as can be, the second has time."
    script, stand_in = ROOT/'tools'/'gpu'/'unattended.sh', tmp_path/'bin'/'python'
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho called >> "{tmp_path}/calls"\n[ $(wc -l < "{tmp_path}/calls") -eq 1 ] && exec "{sys.executable}" "$@" --minutes 0\nexec "{sys.executable}" "$@"\n')
    stand_in.chmod(0o755)
    call = ['sh', str(script), *SHORT, '--work', str(tmp_path/'work'), '--results', str(tmp_path/'results'), '--minutes', '60']
    env = {**os.environ, 'PATH': f'{stand_in.parent}:{os.environ["PATH"]}'}
    done = subprocess.run(call, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'units remain' in done.stdout and done.stdout.splitlines()[-1] == 'Finished.'
    assert (tmp_path/'calls').read_text().split() == ['called']*2 and same_results(stored(whole), stored(tmp_path))
    wrong = subprocess.run([*call, '--run', 'nothing'], capture_output=True, text=True, env=env)
    assert wrong.returncode == 1 and "Unknown run 'nothing'" in wrong.stderr              # a failure ends the loop
    assert len((tmp_path/'calls').read_text().split()) == 3


def test_rows_beside_printed_ones_say_how_they_were_made(tmp_path, capsys):
    "A short recipe and a fixed split have rows of their own, and only what was made as printed gets a difference."
    from lotus_nb import cli, paper
    def lines(scale, split):
        cell = next(c for c in cells_of('table4', scale, split=split) if c.base == 'resnet18-cifar10-10')
        rows = pd.DataFrame([dict(task=cell.name, method=m, seed=s, hparams='{}', metric='test_accuracy', value=.9 + s/1e6, unit='share', n=5000)
                             for m in ('lotus', 'lotus' + AS_PUBLISHED) for s in SEEDS])
        (tmp_path/cell.name).mkdir()
        (tmp_path/cell.name/'provenance.json').write_text(json.dumps(dict(devices=['A Card', 'Another'])))
        with patch.object(paper, 'flat', wraps=paper.flat) as flat: cli._show_item('table4', [cell], {cell.name: rows}, scale, tmp_path)
        assert 'A Card, Another' in capsys.readouterr().out
        shown = flat.call_args[0][0]
        return shown['as described − printed', 'Test acc'].xs('LoTUS', level='method').filter(like='ResNet18 CIFAR-10')
    printed = paper.published(**ITEMS['table4'].printed, model='ResNet18', dataset='CIFAR-10', method='LoTUS', metric='test_acc')['mean'].item()
    apart = f'{.9 + np.mean(SEEDS)/1e6 - printed:+.3f} ['
    full, fixed, fast = lines('full', 'random'), lines('full', 'first-k'), lines('fast', 'first-k')
    assert full['ResNet18 CIFAR-10'].startswith(apart)
    assert fixed["ResNet18 CIFAR-10 (the paper's fixed split)"].startswith(apart) and fixed['ResNet18 CIFAR-10'] == 'not run'
    assert fast["ResNet18 CIFAR-10 (the paper's fixed split, fast recipe)"] == '–'
