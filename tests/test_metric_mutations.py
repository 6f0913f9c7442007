"""The bugs that metrics of unlearning have been published with. Each is put back by a row of the package `mutants`, whose check notices it (run by
`test_mutations`); here stands which row it is, and what the bug does to a number, since a bug that changes nothing would need no check.
"""
import numpy as np
import pytest

import lotus_nb.metrics.attacks as attacks
import lotus_nb.metrics.divergence as divergence
import lotus_nb.metrics.ensembles as ensembles
from lotus_nb.ensemble import logit_confidence
from mutants import MUTATIONS
from mutants import attacks as attack_mutants
from mutants import metrics as metric_mutants
from mutants.ensembles import halves

ROWS = {m[0]: m for m in MUTATIONS}
BUGS = {  # as the project's list of known bugs names them: the rows that put them back
    'label-free modified entropy': ['modified entropy without labels', 'modified entropy with log p for log(1 - p)'],
    'reversed KL': ['reversed KL in JS', 'KLoM turned round', 'normal KL turned round'],
    'normalising over the matrix': ['JSD normalised over the matrix', 'JSD divided by N twice', 'RF-JSD divided by the classes twice'],
    'evaluation in training mode': ['evaluation in training mode', 'evaluation in training mode, seen by the guard'],
    'dependence on the batch size': ['answers that depend on the batch', 'batches that speak together'],
    'raw variance of each example': ['raw variance of each image', 'raw variance of each image, at few models'],
    'leave-one-out bias': ['one model left out', 'one model left out, both games', 'scored by its own fit'],
    "KLoM's dropped maximum": ['the largest sample is dropped', 'KLoM without its maximum, all models at it'],
    'sign-flipped attack': ['attack with its sign turned', 'entropy attack with its sign turned', 'area with its sign turned, all attacks', 'sign of the ratio',
                            "SalUn's classifier with the other sign"],
    'augmentation on one side': ['augmentation on one side, seen in the answers', 'augmentation on one side, seen by an attack', 'augmentation while evaluating'],
    'rounding before averaging': ['rounded before the mean', 'accuracies rounded before their gaps', 'ToW of rounded accuracies'],
    'std_out = np.std(dat_in)': ['std_out = np.std(dat_in)', 'one spread for both sides'],
    'log odds from clipped probabilities': ['log odds from clipped probabilities', 'log odds from clipped probabilities, one model', 'confidences that are all 1']}


@pytest.mark.parametrize('bug', BUGS)
def test_each_has_a_row_of_its_own(bug):
    assert not (lack := [r for r in BUGS[bug] if r not in ROWS]), lack
    assert all(callable(ROWS[r][2]) and ROWS[r][3].__name__ != '<lambda>' for r in BUGS[bug]), 'the check that notices has a name'


def test_no_name_stands_for_two_rows(): assert len(ROWS) == len(MUTATIONS)


def test_label_free_modified_entropy_does_not_see_labels():
    z, y = attack_mutants._random(200, 0)
    log_p, other = np.log(np.exp(z)/np.exp(z).sum(1, keepdims=True)), np.random.default_rng(1).permutation(y)
    assert np.array_equal(attack_mutants._label_free(log_p, y), attack_mutants._label_free(log_p, other))
    assert not np.allclose(attacks.modified_entropy(log_p, y), attacks.modified_entropy(log_p, other))


def test_the_reversed_divergence_has_no_upper_bound():
    p = np.array([[1 - 1e-12, 1e-12]])
    assert divergence.divergence(p, p[:, ::-1]) <= np.log(2) < 10 < divergence.divergence(p, p[:, ::-1], 'ag')


def test_over_the_matrix_the_number_of_images_counts():
    a, b = (metric_mutants.made(forget=n, seed=s) for n, s in ((40, 0), (40, 1)))
    assert np.isclose(metric_mutants._over_the_matrix(a, b), divergence.jsd(a, b)/40)


@pytest.mark.parametrize('models, loss', [(8, .03), (16, .01)])
def test_raw_spreads_cost_most_where_models_are_few(models, loss):
    found = [np.mean([ensembles.likelihood_ratio(*halves(models, 300, 1., s), folds=4, prior=p).auc() for s in range(6)]) for p in (8., 0.)]
    assert found[0] > found[1] + loss, found


def test_leaving_one_out_is_biased_downwards_and_folds_are_not():
    found = np.array([[attack(*halves(16, 60, 0., i), folds=4).auc() for attack in (ensembles.likelihood_ratio, metric_mutants._one_left_out)] for i in range(100)])
    mean, error = found.mean(0), found.std(0)/10
    assert abs(mean[0] - .5) < 3*error[0] and mean[1] < .5 - 3*error[1], (mean, error)


def test_a_dropped_maximum_can_be_everything():
    u, g = np.full((4, 1), 9.), np.zeros((4, 1))
    assert ensembles.klom(u, g) > 11 and ensembles.klom_as_published(u, g) == 0


def test_clipped_probabilities_end_at_fourteen():
    import torch
    z = np.array([[60., 0.], [50., 0.]])
    clipped = metric_mutants._clipped(np.log(np.exp(z - 60)/np.exp(z - 60).sum(1, keepdims=True)), np.zeros(2, int))
    assert np.allclose(clipped, np.log(1e6), atol=1e-3)
    assert logit_confidence(torch.tensor(z), torch.zeros(2, dtype=torch.long)).tolist() == [60, 50]
