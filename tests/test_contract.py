"Every method, from the registry, holds to the contract; every recipe can be run."
import pytest

from lotus_nb.methods.core import check_method, get_method, list_methods, recipes, solve

METHODS = list_methods()
RECIPES = [(m, r) for m in METHODS for r in recipes(m)]


def test_the_methods_of_this_library_are_found(): assert {'finetune', 'neggrad', 'lotus'} <= set(METHODS)


@pytest.mark.parametrize('name', METHODS)
def test_contract(name):
    quick = {**recipes(name).get('digits', {}), 'epochs': 2}
    accuracies = check_method(name, **{k: v for k, v in quick.items() if k in get_method(name).defaults})
    assert set(accuracies) == {'forget', 'retain', 'test'}


@pytest.mark.parametrize('name', METHODS)
def test_runs_without_any_hyper_parameter(name, task): assert solve(task, name).hparams.keys() >= get_method(name).defaults.keys()


@pytest.mark.parametrize('name, recipe', RECIPES)
def test_every_recipe_runs(name, recipe, task):
    assert recipes(name)[recipe]['source']
    new = solve(task, name, recipe=recipe, epochs=1)
    for k, v in recipes(name)[recipe].items():
        if k not in ('source', 'epochs'): assert new.hparams[k] == v


@pytest.mark.parametrize('name', METHODS)
def test_a_slip_of_the_pen_is_answered(name, task):
    with pytest.raises(ValueError, match=f"Did you mean '{name}'"): solve(task, name[:-1] + 'x' + name[-1])
    with pytest.raises(TypeError, match="Did you mean 'epochs'"): solve(task, name, epoch=1)
