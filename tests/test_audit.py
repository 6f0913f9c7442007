"Evaluation with controls: the command `audit`, and controls that would not be controls."
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import lotus_nb.evaluation as ev
from lotus_nb.audit import AUDIT_MARGINS, Phi, audit, audit_checks, save_phi
from lotus_nb.cli import app
from lotus_nb.evaluation import MARGINS, evaluate, faults, judge, run_checks
from lotus_nb.metrics.core import Evidence, reference, save_evidence
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


@pytest.mark.parametrize('tier', ['T0', 'T1'])
def test_no_report_certifies(tier, seen):
    found = {**seen, 'new': seen['gold2'], **({'gold': None, 'gold2': None} if tier == 'T0' else {})}
    report = judge(found)
    assert report.tier == tier
    for text in (report.verdict, report.to_html(), report.to_markdown()): assert 'certified' not in text.lower()


def test_too_few_images_is_said_and_not_computed(seen):
    few = {k: Evidence({p: z[:6] if p == 'forget' else z for p, z in e.logits.items()}, {p: y[:6] if p == 'forget' else y for p, y in e.labels.items()},
                       {p: i[:6] if p == 'forget' else i for p, i in e.ids.items()}) for k, e in seen.items()}
    report = judge({**few, 'new': few['gold2']})
    assert report.invalid and 'there are 6 forget images; it needs at least 10' in list(report.checks.why)


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
