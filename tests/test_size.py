"Memory of the metrics of one model: a few pieces of rows, however many images and classes there are."
import json
import sys
import tracemalloc
from types import SimpleNamespace

import pytest
from conftest import ROOT

from lotus_nb.evaluation import destroyed, equally_sure, judge
from lotus_nb.metrics.accuracy import per_image
from lotus_nb.metrics.core import get_metric, list_metrics, measure

sys.path.insert(0, str(ROOT/'tools'))
import size

PIECE = 2**18*8                                   # bytes of a piece of log probabilities
RUN = SimpleNamespace(seconds=1., cost={}, peak_bytes=1)


def of_size(k, **sizes): return {w: size.made(sizes, k, 'float16', i) for i, w in enumerate(size.WHO)}


def peak(run):
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()


@pytest.fixture(scope='module')
def large(): return of_size(1000, forget=1000, retain=5000, val=500, test=500)


@pytest.mark.parametrize('name', [n for n in list_metrics() if set(get_metric(n).refs) <= {*size.WHO, 'run'}])
def test_no_metric_holds_a_matrix(name, large):
    "5,000 × 1,000 in 64 bits are 19 pieces; RF-JSD may hold its matrices of classes by classes."
    matrices = 10*1000*1000*8 if name.startswith('rf_jsd') else 0
    assert peak(lambda: measure([name], **large, run=RUN)) < 12*PIECE + matrices


def test_a_judgement_holds_one_control_at_a_time(large):
    "Two controls at once, or one in 64 bits, are more than twice the evidence of a model."
    found = {k: large[k] for k in ('new', 'original', 'gold')}
    one = sum(z.nbytes for z in large['new'].logits.values())
    judge(found, ['forget_accuracy'])                                        # what is imported and compiled on the way
    assert peak(lambda: judge(found, ['forget_accuracy'])) < 1.3*one + 12*PIECE
    both = lambda: [f(large['original']) for f in (destroyed, equally_sure)]
    assert peak(both) > 1.9*one


def test_a_whole_matrix_would_be_noticed(large):
    assert peak(lambda: large['new'].log_probs('retain')) > 12*PIECE
    assert peak(lambda: per_image(lambda p, y: p.max(1), 'retain', large['new'], at_most=10**9)) > 12*PIECE


def test_what_was_measured_is_of_all_metrics_and_within_bounds():
    note = json.loads((ROOT/'results'/'size'/'size.json').read_text())
    assert note['scale'] == 1 and note['command'] == 'python tools/size.py' and note['device_name']
    cifar, imagenet = (note['sizes'][k] for k in ('cifar10', 'imagenet'))
    assert cifar['images'] == 60_000 and (imagenet['images'], imagenet['classes'], imagenet['stored']) == (50_000, 1000, 'float16')
    assert cifar['wall'] < 10 and imagenet['peak'] < imagenet['float64']/2
    assert {'jsd', 'rf_jsd', 'zrf', 'mia_entropy', 'mia_svc', 'avg_gap', 'auc_modified_entropy'} <= set(imagenet['metrics']) <= set(list_metrics())
