"Entropies stored for Figure 2 are those of the evidence, set by set and model by model; the committed ones are of the models that the stored rows are about."
import hashlib
import json
import sys
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT

from lotus_nb.bench import evidence_file
from lotus_nb.metrics.core import Evidence, entropy, save_evidence
from lotus_nb.protocol import compact_stem, save_compact

sys.path.insert(0, str(ROOT/'tools'))
import fig2

SIZES = dict(forget=5, retain=40, val=7, test=9)


def made(rng, model):
    "Evidence of a made-up model; the first answer about images to forget is so sure that its entropy is zero."
    logits = {p: rng.normal(0, 3, (n, 4)).astype(np.float32) for p, n in SIZES.items()}
    logits['forget'][0] = [2000, 0, 0, 0]
    return Evidence(logits, {p: np.zeros(n, int) for p, n in SIZES.items()}, {p: np.arange(n) for p, n in SIZES.items()}, model, 't', 'float32')


def work_of(tmp_path, compact, seeds=(0, 12)):
    rng, out = np.random.default_rng(0), {}
    for seed in seeds:
        for m in fig2.MODELS:
            out[seed, m] = ev = made(rng, m)
            (tmp_path/'evidence').mkdir(exist_ok=True)
            if compact: save_compact(ev, compact_stem(tmp_path, 'run', seed, m))
            else: save_evidence(ev, evidence_file(tmp_path, 'run', seed, m))
    return out


def check(tmp_path, compact):
    evidence, out = work_of(tmp_path, compact), tmp_path/'out'
    assert fig2.store('run', tmp_path, out, 'c') == ['0', '12']
    for seed, models in fig2.read(out).items():
        for m, parts in models.items():
            assert parts['forget'][0] == -np.inf
            for p, v in parts.items():
                h = entropy(evidence[seed, m].log_probs(p))
                np.testing.assert_allclose(np.exp(v), h, rtol=.02, atol=1e-12)


@pytest.mark.parametrize('compact', [False, True])
def test_stored_is_what_the_models_said(tmp_path, compact): check(tmp_path, compact)


def test_sets_or_models_mixed_up_are_noticed(tmp_path):
    logs, find = fig2.logs, fig2.find
    def turned(ev): out = logs(ev); return out | {'val': out['val'][::-1]}
    for broken in (patch.object(fig2, 'logs', turned),
                   patch.object(fig2, 'find', lambda w, n, s, m: find(w, n, s, 'lotus' if m == 'gold' else m)),
                   patch.object(fig2, 'logs', lambda ev: {p: v/np.float16(np.log(10)) for p, v in logs(ev).items()})):
        with broken, pytest.raises(AssertionError): check(tmp_path, False)


def test_a_seed_that_is_not_whole_is_left_and_said(tmp_path, capsys):
    work_of(tmp_path, False)
    evidence_file(tmp_path, 'run', 12, 'lotus').unlink()
    assert fig2.store('run', tmp_path, tmp_path/'out', 'c') == ['0'] and 'seed 12: left, no whole evidence of lotus' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='has no evidence'): fig2.store('other', tmp_path, tmp_path/'out2', 'c')
    assert fig2.read(tmp_path/'nowhere') == {}


@pytest.mark.parametrize('folder', sorted(p.parent for p in (ROOT/'results').glob('*/evidence/provenance.json')), ids=lambda p: p.parent.name)
def test_committed_entropies_are_of_the_stored_rows(folder):
    note, rows = (json.loads((f/'provenance.json').read_text()) for f in (folder, folder.parent))
    for seed, one in note['seeds'].items():
        file = folder/f's{seed}.npz'
        assert hashlib.sha256(file.read_bytes()).hexdigest() == one['sha256'] and file.stat().st_size < 4*2**20
        assert one['forget_ids'] in json.dumps(rows['forget_ids'])
        assert all(len(v) == one['n'][p] for m in fig2.read(folder)[int(seed)].values() for p, v in m.items())
    if folder.parent.name == 'cifar10':
        judged = json.loads((folder.parent/'verdicts.json').read_text())
        assert (note['seeds']['0']['weights']['noop'], note['seeds']['0']['weights']['gold']) == (judged['original'], judged['gold'])
