"Evaluation with controls: the command `audit`, and controls that would not be controls."
import html
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset
from typer.testing import CliRunner

import lotus_nb.evaluation as ev
from lotus_nb.audit import AUDIT_MARGINS, Phi, _over_models, audit, audit_checks, save_phi
from lotus_nb.cli import app
from lotus_nb.evaluation import MARGINS, TIERS, compare_reports, evaluate, faults, judge, run_checks
from lotus_nb.metrics.core import Evidence, reference, save_evidence
from lotus_nb.metrics.ensembles import klom_normal
from lotus_nb.task import UnlearnTask
from lotus_nb.train import digits_task


@pytest.fixture(scope='module')
def task(): return digits_task(seed=0, gold2=True)


@pytest.fixture(scope='module')
def seen(task): return {k: reference(task, k) for k in ('original', 'gold', 'gold2', 'random')}


@pytest.fixture(scope='module')
def files(seen, tmp_path_factory):
    folder = tmp_path_factory.mktemp('evidence')
    return {k: str(save_evidence(e, folder/k)) for k, e in seen.items() if k != 'random'}


def drawn(seed=0, m=100, n=80, again=None):
    "Log odds of made-up models: some images stand out when they were trained on, and methods differ in what remains of that."
    rng = np.random.default_rng(seed)
    members = rng.permuted(np.repeat([[True, False]], m, 0).repeat(n//2, 1), axis=1)
    forget = members & (rng.random(members.shape) < .5)
    hard = np.where(rng.random(n) < .4, 6., 1.)
    draw = lambda known: rng.normal(size=known.shape) + 2 + np.where(hard > 2, -4, 1) + hard*known
    gold = members & ~forget
    return Phi(draw(members if again is None else gold), draw(gold), draw(gold), draw(members), members, forget, {'method': 'made up'})


def run(*args): return CliRunner().invoke(app, [*map(str, args)])


def test_one_model(files, tmp_path):
    got = run('audit', files['gold2'], '--original', files['original'], '--gold', files['gold'], '--gold2', files['gold2'], '--out', tmp_path, '--name', 'again')
    assert got.exit_code == 0, got.output
    assert 'again' in got.output and 'INVALID' not in got.output
    read = json.loads((tmp_path/'report.json').read_text())
    assert (read['tier'], read['schema'], read['invalid']) == ('T1', 'lotus_nb.report', [])
    assert (tmp_path/'report.html').read_text().startswith('<!doctype html>') and read['verdict'] in (tmp_path/'report.md').read_text()


def test_a_leaking_gold_makes_it_invalid(files, tmp_path):
    got = run('audit', files['gold'], '--original', files['original'], '--gold', files['original'], '--gold2', files['gold2'], '--out', tmp_path)
    assert got.exit_code == 3 and got.output.startswith('INVALID')
    assert '<p class="lead invalid"><b>INVALID' in (tmp_path/'report.html').read_text()


def test_many_models(tmp_path):
    file = save_phi(drawn(), tmp_path/'phi')
    got = run('audit', file, '--name', 'nothing', '--out', tmp_path)
    assert got.exit_code == 0 and 'nothing is told from gold' in got.output.replace('\n', ' '), got.output
    assert json.loads((tmp_path/'report.json').read_text())['tier'] == 'T3'


@pytest.mark.parametrize('args, said', [
    (['new'], '--original FILE'), (['nix.npz'], 'There is no file'), (['new', '--original', 'old', '--margin', 'atack=.1'], "Did you mean 'attack'"),
    (['new', '--original', 'old', '--margin', 'attack=big'], 'must give a number'), (['new', '--original', 'old', '--margin', 'attack=-1'], 'must be above 0'),
    (['new', '--original', 'text'], 'holds no evidence'), (['phi', '--gold', 'old'], 'Leave out `--gold`'), (['new', '--original', 'old', '--name', 'gold'], 'names a control')])
def test_mistakes_are_told(args, said, files, tmp_path):
    (tmp_path/'text').write_text('no')
    known = {'new': files['gold'], 'old': files['original'], 'text': tmp_path/'text', 'phi': tmp_path/'phi.npz'}
    save_phi(drawn(), tmp_path/'phi')
    got = run('audit', *(known.get(a, a) for a in args), '--out', tmp_path/'out')
    assert got.exit_code == 2 and said in got.output.replace('\n', ' '), got.output
    assert 'Traceback' not in got.output


def test_a_control_that_cannot_fail_is_noticed(seen):
    "Each control replaced by one that must not pass for it."
    good = {'noop': seen['original'], 'gold2': seen['gold2'], 'destroyed': ev.destroyed(seen['original']), 'cheat': ev.equally_sure(seen['original'])}
    assert faults(run_checks(good, seen), seen) == []
    for name, wrong, said in (('noop', seen['gold'], 'left as it is passes'), ('destroyed', seen['gold'], 'does not fail for utility'),
                              ('cheat', seen['gold'], 'equally sure passes'), ('gold2', good['destroyed'], 'second retraining is told from gold')):
        assert any(said in f for f in faults(run_checks({**good, name: wrong}, seen), seen)), name


def test_the_cheat_hides_from_attacks_and_not_from_checks(seen):
    cheat = ev.equally_sure(seen['original'])
    checks = run_checks({'cheat': cheat}, seen).set_index('check').outcome
    assert checks['attack'] != 'beyond' and 'beyond' in (checks['answers'], checks['collateral'])


def test_undecided_is_never_success(task, seen):
    report = evaluate(task.gold2, task, ['forget_accuracy'])
    assert 'undecided' in list(report.checks[report.checks.model == 'model'].outcome) and report.verdict.startswith('Not shown')


def cut(ev, **keep):
    "The evidence with these images of a part; None: without the part."
    keep = {p: keep.get(p, slice(None)) for p in ev.parts}
    of = lambda d: {p: v[keep[p]] for p, v in d.items() if keep[p] is not None}
    return Evidence(of(ev.logits), of(ev.labels), of(ev.ids), ev.model, ev.transform, ev.dtype)


@pytest.mark.parametrize('tier', ['T0', 'T1', 'T2', 'T3'])
def test_no_report_certifies(tier, seen):
    if tier in ('T0', 'T1'):
        report = judge({**seen, 'new': seen['gold2'], **({'gold': None, 'gold2': None} if tier == 'T0' else {})})
    else:
        phi = drawn() if tier == 'T3' else one_request()
        report = audit(phi)
    assert report.tier == tier
    for text in (report.verdict, report.to_html(), report.to_markdown(), report.to_json(), report._repr_html_()):
        assert 'certified' not in text.lower()


def one_request(seed=0, m=48, n=60):
    "Made-up models of one request, of which the unlearned ones are as the originals."
    rng = np.random.default_rng(seed)
    forget = np.tile(np.arange(n) < n//2, (m, 1))
    members = np.tile(np.arange(n) < n - 10, (m, 1))
    draw = lambda shift: rng.normal(size=(m, n)) + 2 + shift*forget
    return Phi(draw(4), draw(0), draw(0), draw(4), members, forget)


def test_a_lower_bound_never_decides():
    "An exact method passes an audit of one request, though its lower bound of ε shows nothing."
    phi = one_request(m=96)
    exact = audit(Phi(one_request(1, m=96).gold, phi.gold, phi.gold2, phi.original, phi.members, phi.forget), who='exact')
    assert exact.verdict.startswith('exact is within the margins of gold'), exact.verdict
    assert audit(phi, who='nothing').verdict.startswith('nothing is told from gold')


@pytest.mark.parametrize('keep', [
    dict(forget=slice(6)), dict(forget='class'), dict(test=slice(5)), dict(val=None), dict(test=None, val=None), dict(forget=slice(1))])
def test_reports_of_little_can_be_shown(keep, seen):
    "Too few images, or none of a class, is said; no format fails over it."
    three = seen['original'].labels['test'] == 3
    keep = {p: (seen['original'].labels[p] == 3 if k == 'class' else k) for p, k in keep.items()}
    if 'forget' in keep and not isinstance(keep['forget'], slice): keep['test'] = ~three          # a class that test lacks
    few = {k: cut(e, **keep) for k, e in seen.items()}
    report = judge({**few, 'new': few['gold2']})
    assert report.verdict.startswith('INVALID') == bool(report.invalid) == (keep != {'val': None})
    for text in (report.to_html(), report.to_markdown(), report.to_json(), report._repr_html_()):
        assert ('INVALID' in text) == bool(report.invalid)


def test_too_few_images_is_said_and_not_computed(seen):
    few = {k: cut(e, forget=slice(6)) for k, e in seen.items()}
    report = judge({**few, 'new': few['gold2']})
    assert report.invalid and 'there are 6 forget images; it needs at least 10' in list(report.checks.why)


def test_the_interval_of_an_area_is_of_that_area():
    "Test images of a class that nobody forgets count in the area, and therefore in its interval."
    rng = np.random.default_rng(0)
    def z(y, m): return np.stack([np.where(y == k, m, 0) for k in range(2)], 1).astype(np.float32)
    y = {'forget': np.zeros(60, int), 'retain': np.zeros(60, int), 'test': np.repeat([0, 1], 100)}
    m = {p: rng.normal(np.where(v == 1, 3., 0.)) for p, v in y.items()}
    e = Evidence({p: z(y[p], m[p]) for p in y}, y, {p: np.arange(len(v)) for p, v in y.items()})
    r = judge(dict(new=e, original=e)).table(['auc_loss']).iloc[0]
    assert r.low <= r.after <= r.high < .4 and ev.matched_area(e).value > .4


def test_numbers_of_one_request_are_at_95_percent():
    phi = one_request()
    low, high = audit(phi).values.set_index(['model', 'number']).loc[('noop', 'normal KLoM, forget'), ['low', 'high']]
    f, stat = phi.forget[0], lambda c, g: klom_normal(c, g)[f].mean()
    at = {level: _over_models(stat, phi.original, phi.gold, blocks=8, level=level)[1:] for level in (.9, .95)}
    assert np.allclose((low, high), at[.95]) and not np.allclose((low, high), at[.9])


def test_intervals_hold_their_values(seen):
    "On forget sets with other class shares than the test set, too."
    eights = seen['original'].labels['forget'] >= 5
    for found in (seen, {k: cut(e, forget=eights) for k, e in seen.items()}):
        t = judge({**found, 'new': found['original']}).table()
        for v, low, high in (('after', 'low', 'high'), ('before', 'before_low', 'before_high'), ('gold', 'gold_low', 'gold_high')):
            of = t[t[low].notna()]
            assert len(of) >= 5 and ((of[low] <= of[v] + 1e-9) & (of[v] <= of[high] + 1e-9)).all(), of
        assert {'auc_loss', 'rf_jsd', 'activation_distance', 'avg_gap'} <= set(t.index[t.low.notna()])
        assert set(t.unit) >= {'share', 'nats'}


def test_json_is_strict(task, seen):
    report = evaluate(task.gold2, task)
    read = json.loads(report.to_json(), parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    facts = read['facts']
    assert facts['seconds'] is None and facts['seed'] is None and {'when', 'versions', 'commit', 'device'} <= set(facts['evaluated'])
    odd = json.loads(judge({**seen, 'new': seen['gold']}, hparams=dict(lr=float('nan'), decay=np.float32(.5), on=np.inf)).to_json())
    assert odd['facts']['hparams'] == dict(lr=None, decay=.5, on=None)
    assert json.loads(audit(drawn()).to_json(), parse_constant=lambda c: pytest.fail(c))['facts']['evaluated']['when']


def test_other_labels_are_not_the_same_images(seen):
    new = cut(seen['gold'])
    new.labels['forget'] = (new.labels['forget'] + 1) % 10
    with pytest.raises(ValueError, match='other images, labels or classes'): judge({**seen, 'new': new})


def test_two_reports_of_one_method_stand_side_by_side(seen):
    a, b = (judge({**seen, 'new': seen[k]}, who='finetune', hparams=dict(lr=k)) for k in ('gold', 'gold2'))
    table = compare_reports(a, b)
    assert list(table)[-2:] == ['finetune', 'finetune (2)'] and not table['finetune'].equals(table['finetune (2)'])


def test_subsets_are_told_apart():
    "Two selections from one data set are two forget sets."
    images = torch.rand(60, 1, 8, 8)
    data = TensorDataset(images, torch.arange(60) % 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    def of(a, b):
        rest = [i for i in range(60) if not a <= i < b]
        task = UnlearnTask(model, Subset(data, range(a, b)), Subset(data, rest[:20]), test=Subset(data, rest[20:]))
        return evaluate(model, task, ['forget_accuracy'])
    one, other = of(0, 20), of(20, 40)
    assert one.facts['forget_ids'] != other.facts['forget_ids']
    with pytest.raises(ValueError, match='different forget sets'): compare_reports(one, other)


def test_margins_of_an_audit_and_an_exact_method():
    phi = drawn()
    assert not audit(phi).invalid
    with pytest.raises(ValueError, match='Did you mean'): audit_checks(phi, {'privcy': .1})
    exact = audit(drawn(again=True), who='exact')
    assert not exact.invalid and 'is told' not in exact.verdict, exact.verdict
    assert set(AUDIT_MARGINS['T3']) == set(exact.checks.check) and set(MARGINS) >= {'utility', 'attack'}


def test_an_image_without_enough_models_is_left_out_and_counted():
    phi = drawn()
    members, forget = phi.members.copy(), phi.forget.copy()
    members[:, 0], forget[:, 0] = True, False                # nobody never knew the first image
    found = audit(Phi(phi.unlearned, phi.gold, phi.gold2, phi.original, members, forget))
    assert found.facts['left_out'] == 1


def test_every_report_names_the_tiers_that_were_not_run(seen):
    for found in (judge({**seen, 'new': seen['gold2']}), audit(drawn()), audit(one_request())):
        for text in (html.unescape(found.to_html()), found.to_markdown()):
            text = text.replace('`', '')
            others = {t for t in ('T1', 'T2', 'T3', 'T4') if f'Not run here: {t}, {TIERS[t][0]}' in text}
            assert others == {'T1', 'T2', 'T3', 'T4'} - {found.tier} and TIERS[found.tier][1] in text
