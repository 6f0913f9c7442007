"Predicted passes are those that a run counts; operations are those that torch counts; and the bugs one could make are seen."
import importlib.util
import json
import re
import shutil
import subprocess
import warnings
from functools import lru_cache

import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lotus_nb import planning
from lotus_nb.methods.core import get_method, list_methods, solve
from lotus_nb.planning import Cluster, Pass, Sizes, counter, counts, flops, image_flops, passes, plan
from lotus_nb.task import UnlearnTask


def complete(name, recipe=None, **changes):
    "All settings of a method, and of one under it."
    h = {**get_method(name).defaults, **(get_method(name).recipes[recipe] if recipe else {}), **changes}
    if h.get('base'): h['settings'] = complete(h['base'], **(h['settings'] or {}))
    return h


@pytest.fixture(scope='module')
def uneven(task):
    "A task whose last batches hold one image, of 7."
    return UnlearnTask(task.model, task.forget.take(range(29)), task.retain.take(range(106)), task.val.take(range(33)))


SHORT = dict(sfron=dict(steps=17, inner=3), unsir=dict(impair_epochs=2, noise_steps=3), jit=dict(samples=4), amun=dict(epochs=2, steps=5), lotus=dict(on_overshoot='sharpen', epochs=2),
             dual_optim=dict(settings=dict(epochs=2)), retrain=dict(epochs=2), **{m: dict(epochs=2) for m in ('ct', 'delete', 'no_t', 'finetune', 'neggrad', 'relabel', 'salun', 'l1_sparse', 'msg')})
NAMES = [m for m in list_methods(controls=True) if m in planning.counted()]
VARIANTS = [('neggrad', dict(as_published=True)), ('relabel', dict(separate=True)), ('bad_teacher', dict(shuffle=False, epochs=2)), ('bad_teacher', dict(retain_frac=1.)),
            ('scrub', dict(epochs=3, msteps=1, forget_batch=5)), ('scrub', dict(epochs=2, rewind=True)), ('scrub', dict(epochs=2, msteps=5, order='min-max', as_published=True)),
            ('ssd', dict(passes=2)), ('unsir', dict(rounds=2, repair_epochs=0, noise_steps=2)), ('unsir', dict(per_class=3, noise_steps=1)),
            ('unsir', dict(class_wise=True, noise_images=6, copies=3, noise_steps=2)), ('salun', dict(mix=True, epochs=2)), ('salun', dict(base='lotus', settings=dict(on_overshoot='sharpen', epochs=2))),
            ('sfron', dict(steps=40, inner=7)), ('sfron', dict(steps=3, inner=3)), ('jit', dict(epochs=2, samples=2)), ('amun', dict(epochs=1, steps=5, retain=False)),
            ('amun', dict(epochs=1, steps=5, forget=False, retain=False)), ('dual_optim', dict(base='salun', settings=dict(epochs=1))), ('lotus', dict(class_wise=True, on_overshoot='sharpen', epochs=2)),
            ('salun', dict(base='finetune', settings=dict(recipe='scrub-small', epochs=1))), ('lotus', dict(retain_frac=1., on_overshoot='sharpen', epochs=1)), ('finetune', dict(l2_to_init=.1, epochs=1))]


def run(task, name, batch, **changes):
    "What a run counts, and what was predicted of it."
    h = complete(name, **changes)
    with warnings.catch_warnings(action='ignore'): new = solve(task, name, batch_size=batch, amp=False, **changes)
    seen = torch.cat([b.y for b in task.loader('forget', train=False)]).unique()
    sizes = Sizes(len(task.forget), len(task.retain), len(task.val), task.n_classes, len(seen))
    if name == 'amun': h['attack'] = (new.cost['backward'] - new.cost['seen_forget'] - new.cost['seen_retain'])/sizes.forget
    return new, passes(name, sizes, {**h, 'batch_size': batch})


@pytest.mark.parametrize('name', NAMES)
def test_predicted_is_counted(task, name):
    new, ps = run(task, name, 64, **SHORT.get(name, {}))
    assert counts(ps) == new.cost


@pytest.mark.parametrize('name', NAMES)
def test_predicted_is_counted_where_batches_are_uneven(uneven, name):
    new, ps = run(uneven, name, 7, **SHORT.get(name, {}))
    assert counts(ps) == new.cost


@pytest.mark.parametrize('name, changes', VARIANTS, ids=[f'{m}-{i}' for i, (m, _) in enumerate(VARIANTS)])
def test_predicted_is_counted_for_other_settings(uneven, name, changes):
    new, ps = run(uneven, name, 7, **changes)
    assert counts(ps) == new.cost


def test_every_method_with_stored_results_has_a_counter():
    "A new method shows up in every table without a counter; here it is asked for as soon as its rows are stored."
    stored = set(pd.read_csv(ROOT/'results'/'digits'/'results.csv').method) - {'gold', 'gold2'}
    assert stored <= set(planning.counted())


def test_lotus_that_stops_costs_at_most_what_was_predicted(task):
    new, ps = run(task, 'lotus', 64, epochs=4, lr=1e-2, alpha=8.)
    assert all(new.cost[k] <= v for k, v in counts(ps).items()) and new.cost['steps'] < counts(ps)['steps']


MUTANTS = {
    'no batch joins its neighbour': ('_n_batches', lambda n, size, train=True: -(-n//size), 'finetune', {}),
    'a stream does not start again': ('_of_stream', lambda n, size, batches: min(n, size*batches), 'neggrad', dict(epochs=1)),
    'full batches only': ('_of_stream', lambda n, size, batches: size*batches, 'sfron', dict(steps=40, inner=2)),
    'shares are rounded': ('_share', lambda n, frac: round(n*frac), 'bad_teacher', {}),
    'statistics are forgotten': ('_statistics', lambda over, n, times=1: Pass('statistics', over, 0), 'salun', dict(epochs=1)),
    'noise without its network': ('_noise', lambda over, n, times, size: Pass('noise', over, 0, n, times), 'unsir', dict(noise_steps=2))}


@pytest.mark.parametrize('what', MUTANTS)
def test_a_wrong_count_is_seen(uneven, monkeypatch, what):
    helper, broken, name, changes = MUTANTS[what]
    right, ps = run(uneven, name, 7, **changes)
    assert counts(ps) == right.cost
    monkeypatch.setattr(planning, helper, broken)
    new, ps = run(uneven, name, 7, **changes)
    assert counts(ps) != new.cost


# Operations.

class Operations(TorchDispatchMode):
    "Operations of what runs inside the block."
    def __init__(self): super().__init__(); self.n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, formula = func(*args, **(kwargs or {})), flop_registry.get(func._overloadpacket)
        if formula: self.n += formula(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'noop'])
def test_operations_of_a_run(uneven, name):
    with Operations() as seen: _, ps = run(uneven, name, 7, **SHORT.get(name, {}))
    assert seen.n == flops(ps, image_flops(uneven.model, (1, 8, 8)))


@pytest.mark.parametrize('layer, size, forward', [
    (nn.Linear(7, 5), (7,), 2*7*5), (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10), 2*10*10*8*27), (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 10, 10), 2*5*5*8*27),
    (nn.Conv2d(8, 8, 3, padding=1, groups=4), (8, 6, 6), 2*6*6*8*2*9), (nn.Conv2d(4, 6, 1), (4, 5, 5), 2*25*4*6)])
def test_operations_by_hand(layer, size, forward):
    assert image_flops(layer, size) == dict(forward=forward, weights=forward, images=forward)


def test_the_first_layer_needs_no_gradient_in_the_image():
    a, b = 2*64*27*4, 2*64*4*36
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    assert image_flops(net, (3, 8, 8)) == dict(forward=a + b, weights=a + 2*b, images=a + b)


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 8, 8))
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image_flops(model, (3, 8, 8))
    assert model.training and not model[0].weight.requires_grad and next(model.parameters()).device.type == 'cpu'
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())


# Hours.

ONE = dict(forward=10**12, weights=2*10**12, images=10**12)


def test_hours_by_hand():
    p = Pass('update', 'all', 3600, 3600, times=2, batch=64)
    assert Cluster(1, tflops=1, utilisation=.5).hours(p, ONE) == pytest.approx((2*2*3, 2*2*3))                  # 2·3600 images of 3 TFLOP at half a TFLOP/s
    assert Cluster(8, tflops=1, utilisation=.5, images_per_gpu=16, scaling=.5).hours(p, ONE) == pytest.approx((12, 12/4/.5))
    assert Cluster(1, tflops=1, utilisation=.5).hours(Pass('noise', 'x', 3600, 3600, into='images'), ONE)[0] == pytest.approx(4)


@pytest.mark.parametrize('n, batch, gpus, busy', [(10**6, 0, 512, 512), (10**6, 128, 512, 4), (100, 128, 512, 3), (20, 0, 512, 1), (10**6, 128, 2, 2)])
def test_busy(n, batch, gpus, busy): assert Cluster(gpus, images_per_gpu=32).busy(Pass('look', 'all', n, batch=batch)) == busy


@pytest.mark.parametrize('field, value, said', [('gpus', 0, 'above 0'), ('tflops', -1, 'above 0'), ('utilisation', 40, 'at most 1'), ('scaling', 1.2, 'at most 1'), ('images_per_gpu', 0, 'above 0')])
def test_impossible_hardware(field, value, said):
    with pytest.raises(ValueError, match=f'`{field}` is {value}; it must be .*{said}'): Cluster(**{field: value})


def test_plan():
    work = {m: passes(m, Sizes(100, 900), dict(epochs=e, batch_size=32)) for m, e in (('finetune', 3), ('retrain', 30))}
    df = plan(work, ONE, [Cluster(1), Cluster(8)])
    assert df['of retraining'].to_dict() == pytest.approx(dict(finetune=.1, retrain=1)) and (df['hours on 1'] == df.gpu_hours).all()
    assert df.PFLOP['finetune'] == pytest.approx(3*900*3e12/1e15) and (df.auxiliary == 0).all()
    text = '\n'.join(df.attrs['assumptions'])
    assert all(w in text for w in ('790 TFLOP/s', '40% used', '8 GPUs', 'no time for loading images'))
    assert 'of retraining' not in plan({'finetune': work['finetune']}, ONE, [Cluster()])


def test_a_plan_of_a_billion_images_is_quick_and_whole():
    for name in NAMES:
        h = {**complete(name), 'batch_size': 1024, 'attack': 50}
        c = counts(passes(name, Sizes(10**7, 99*10**7, 50_000, 1000), h))
        assert all(v >= 0 and float(v).is_integer() for v in c.values()), name


@pytest.mark.parametrize('wrong, said', [
    (lambda: passes('lotos', Sizes(4, 9), {}), "Did you mean 'lotus'"), (lambda: passes('scrub', Sizes(4, 9), dict(batch_size=4)), "'msteps' of scrub is missing"),
    (lambda: passes('finetune', Sizes(4, 9), dict(epochs=1)), "'batch_size' of finetune is missing"), (lambda: passes('finetune', Sizes(4, 9), dict(epochs=1, batch_size=0)), '`batch_size` is 0'),
    (lambda: passes('dual_optim', Sizes(4, 9), dict(base='scrub', settings=None, batch_size=4)), 'of scrub is missing'), (lambda: passes('amun', Sizes(4, 9), {**complete('amun'), 'batch_size': 4}), "'attack' of amun"),
    (lambda: Sizes(0, 9), '`forget` is 0'), (lambda: Sizes(4, 9, classes=1), '`classes` is 1')])
def test_errors(wrong, said):
    with pytest.raises(ValueError) as e: wrong()
    assert said in str(e.value)


def test_a_method_of_ones_own():
    @counter('of_my_own')
    def mine(h, s): return [Pass('look', 'forget', s.forget, times=h['epochs'])]
    try: assert counts(passes('of_my_own', Sizes(4, 9), dict(epochs=2, batch_size=4)))['forward'] == 8
    finally: planning._counters.pop('of_my_own')


# The table that readers can change.

NETWORKS = {'small': dict(forward=10**9, weights=2*10**9, images=10**9), 'large': dict(forward=8*10**9, weights=15*10**9, images=9*10**9)}
FIRST = dict(network='large', recipe='own', images=1_281_167, val=50_000, forget=10, replayed=100, epochs=90, batch=1000, gpus=8, tflops=790, utilisation=40, images_per_gpu=32,
             scaling=90, price=3.)
CHANGED = [{}, dict(forget=1, gpus=512), dict(forget=50, replayed=5, network='small', epochs=5), dict(tflops=100, utilisation=12.5, scaling=70, images_per_gpu=100, batch=500, price=.5),
           dict(images=10**9, batch=10_000, gpus=1, val=0), dict(batch=100, images_per_gpu=64)]


@pytest.fixture(scope='module')
def sheet():
    own = {m: {**complete(m), **(dict(attack=50) if m == 'amun' else {})} for m in NAMES if m != 'noop'}
    return planning.calculator({'own': own}, NETWORKS, **FIRST), own


def by_plan(own, a):
    "What `plan` says under these assumptions."
    n_f = round(a['images']*a['forget']/100)
    rest = a['images'] - n_f
    work = {m: passes(m, Sizes(n_f, rest if m == 'retrain' else round(rest*a['replayed']/100), a['val']), {**h, 'batch_size': a['batch'], **({'epochs': a['epochs']} if m == 'retrain' else {})})
            for m, h in own.items()}
    return plan(work, NETWORKS[a['network']], [Cluster(a['gpus'], a['tflops'], a['utilisation']/100, a['images_per_gpu'], a['scaling']/100)])


def in_browser(data, a, script=None):
    "What the page's script makes of the embedded numbers, in Node."
    if not (node := shutil.which('node')): pytest.skip('Node is not here, so the script of the page was not run')
    code = (script or planning._SCRIPT) + '; console.log(JSON.stringify(lotusPlan(...JSON.parse(process.argv[1]))))'
    done = subprocess.run([node, '-e', code, json.dumps([data, a])], capture_output=True, text=True, check=True)
    return pd.DataFrame(json.loads(done.stdout)).set_index('method')


def check_script(sheet, a, script=None):
    (calc, own), a = sheet, {**FIRST, **a}
    js, py = in_browser(calc.data, a, script), by_plan(own, a)
    assert set(js.index) == set(py.index)
    tolerance = .01 if (100 - a['forget'])*a['replayed']/100 >= a['forget'] else .05      # `plan` rounds to whole batches
    for ours, theirs in dict(images='forward', pflop='PFLOP', gpu_hours='gpu_hours', hours=f"hours on {a['gpus']}", share='of retraining').items():
        assert js[ours].to_dict() == pytest.approx(py[theirs].to_dict(), rel=tolerance), (ours, a)
    assert js.price.to_dict() == pytest.approx((js.gpu_hours*a['price']).to_dict())


@pytest.mark.parametrize('changed', CHANGED, ids=range(len(CHANGED)))
def test_the_script_of_the_page_says_what_plan_says(sheet, changed): check_script(sheet, changed)


@pytest.mark.parametrize('right, wrong', [('1e12', '1e11'), ('3600*', '60*'), ('Math.floor(once/', '(once/'), ('busy > 1 ? ', 'busy > 0 ? '), ('retrain ? rest :', 'false ? rest :'), ("image[p.into]", "image.weights")])
def test_a_wrong_constant_is_seen(sheet, right, wrong):
    assert right in planning._SCRIPT
    broken = planning._SCRIPT.replace(right, wrong)
    with pytest.raises(AssertionError):
        for changed in CHANGED: check_script(sheet, changed, broken)


def test_the_page_carries_its_numbers_and_nothing_from_elsewhere(sheet):
    calc, own = sheet
    page = calc._repr_html_()
    assert json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1]) == calc.data
    assert {k: float(v) for k, v in re.findall(r'name="(\w+)" type="number"[^>]*value="([^"]+)"', page)} == {k: v for k, v in FIRST.items() if k not in ('network', 'recipe')}
    assert re.findall(r'<option selected>(\w+)', page) == ['large', 'own'] and not re.search(r'src=|https?:|@import', page)
    shown = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r) for r in re.findall(r'<tr>(.*?)</tr>', page)[1:]]
    assert shown == calc.table.values.tolist() and calc.table.Method.tolist() == by_plan(own, FIRST).sort_values('gpu_hours').index.tolist()


def test_the_script_words_durations_as_the_table_does(sheet):
    if not (node := shutil.which('node')): pytest.skip('Node is not here')
    hours = [1/7200, 1/60, .5, 1, 30.4, 2400, 123456, 10**9]
    done = subprocess.run([node, '-e', planning._SCRIPT + '; console.log(JSON.stringify(JSON.parse(process.argv[1]).map(lotusSaid)))', json.dumps(hours)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [planning._said(h) for h in hours]


def test_a_method_that_is_not_linear_is_refused():
    @counter('of_my_own')
    def mine(h, s): return [Pass('look', 'forget', s.forget**2)]
    try:
        with pytest.raises(ValueError, match='of_my_own over forget are not linear'): planning.linear('of_my_own', {})
    finally: planning._counters.pop('of_my_own')


# The measuring script and what it stored.

@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('complexity_tool', ROOT/'tools'/'complexity.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(name): return pd.read_csv(ROOT/'results'/'complexity'/f'{name}.csv')


def test_bytes_by_hand(tool):
    a = torch.zeros(1000)
    with tool.Counted() as seen:
        b = a + 1                                                      # 4,000 bytes
        c = b*2                                                        # 8,000
        del b
        d = c + 1                                                      # 8,000 still, since `b` is gone
        c.add_(1); d.view(10, 100)                                     # nothing new
    assert seen.peak == 8000 and seen.live == 8000


def test_counts_are_the_same_each_time(tool):
    assert len({json.dumps(tool.exact(*tool.work('lotus', 'n_f', 64)[:2])) for _ in range(2)}) == 1


@pytest.mark.filterwarnings('ignore:SSD dampened')
@pytest.mark.parametrize('piece, axis, value', [('finetune', 'side', 8), ('unsir', 'n_f', 64), ('ssd', 'classes', 100), ('aux: noise', 'noise', 2), ('sfron', 'epochs', 2), ('dual_optim', 'batch', 32)])
def test_stored_counts_are_those_of_this_code(tool, piece, axis, value):
    df = stored('counts')
    row = df[(df.piece == piece) & (df.axis == axis) & (df.value == value)].iloc[0]
    now = tool.exact(*tool.work(piece, axis, value)[:2])
    assert {k: row[k] for k in now} == now


def test_stored_operations_are_those_predicted(tool):
    df = stored('counts')
    network = lru_cache(lambda k, width, side: image_flops(tool.create_model('small_cnn', k, width=width), (3, side, side)))
    for r in df[df.piece.isin(tool.METHODS + tool.OTHERS)].itertuples():
        ps = tool_passes(tool, r)
        assert counts(ps) == {k: getattr(r, k) for k in ('forward', 'backward', 'steps', 'seen_forget', 'seen_retain')}, r
        if r.axis == 'n_f': assert flops(ps, network(int(r.classes), int(r.width), int(r.side))) == r.flops


def tool_passes(tool, r):
    h = {**tool.settings(r.piece, {k: int(getattr(r, k)) for k in ('epochs', 'noise')}), 'batch_size': int(r.batch)}
    if r.piece == 'dual_optim': h['settings'] = {**complete('scrub'), **h['settings']}
    if r.piece == 'amun': h['attack'] = (r.backward - r.seen_forget - r.seen_retain)/r.n_f
    return passes(r.piece, Sizes(int(r.n_f), int(r.n_r), int(r.n_v), int(r.classes)), h)


def test_every_method_is_counted_and_every_point_timed_as_often_as_the_others(tool):
    n, df = stored('times').groupby(['piece', 'axis', 'value']).size(), stored('counts')
    assert n.nunique() == 1 and n.iloc[0] >= 5 and len(n) == len(list(tool.points())) and len(df) == len(list(tool.points(False)))
    assert {*tool.METHODS, *tool.OTHERS, 'noop'} == set(list_methods(controls=True))


def test_counts_are_stored_by_committed_code():
    about = json.loads((ROOT/'results'/'complexity'/'about.json').read_text())
    assert about['sessions'][-1]['complete'] and not about.get('counts', about['sessions'][0])['commit'].endswith('+')


@pytest.mark.parametrize('piece', ['lotus', 'aux: divergence'])
def test_a_named_device_measures_the_same_work(tool, piece):
    got = [tool.exact(*tool.work(piece, 'n_f', 64, *device)[:2]) for device in ((), ('cpu',))]
    assert got[0] == got[1] and tool.clock(*tool.work(piece, 'n_f', 64, 'cpu')[:2], device='cpu') > 0


def test_a_device_that_is_not_here_is_refused_before_any_work(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('torch.accelerator.is_available', lambda: False)
    monkeypatch.setattr('sys.argv', ['complexity.py', '--device', 'cuda', '--out', str(tmp_path/'x')])
    with pytest.raises(SystemExit): tool.main()
    assert "torch sees no device 'cuda' here" in capsys.readouterr().err and not (tmp_path/'x').exists()


def test_another_device_is_synchronised_and_leaves_numpy_to_the_cpu(tool, monkeypatch):
    calls = []
    monkeypatch.setattr('torch.accelerator.synchronize', lambda: calls.append(1))
    seconds = tool.clock(lambda: 0, lambda x: tool.time.sleep(.01), least=.005, device='cuda')
    assert len(calls) == 2 and seconds >= .01
    assert not {p for p, *_ in tool.points(True, False)} & set(tool.SECTION10)


def test_a_stopped_measurement_goes_on(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, 'points', lambda *_: iter([('ZRF', 'k', 10), ('RF-JSD', 'k', 10)]))
    call = lambda *args: (monkeypatch.setattr('sys.argv', ['complexity.py', '--reps', '2', '--out', str(tmp_path), *args]), tool.main())
    call('--limit', '0')
    assert 'run the command again' in capsys.readouterr().out and len(pd.read_csv(tmp_path/'counts.csv')) == 1
    call(); call()
    rows = pd.read_csv(tmp_path/'times.csv')
    assert len(rows) == 4 and not rows.duplicated(['piece', 'axis', 'value', 'rep']).any() and (rows.seconds > 0).all()
    sessions = json.loads((tmp_path/'about.json').read_text())['sessions']
    assert [s['complete'] for s in sessions] == [False, True, True]
