"Every method, from the registry, holds to the contract; every recipe can be run; every slip is answered."
import pytest
from conftest import quick

from lotus_nb.methods.core import check_method, get_method, list_methods, recipes, solve

METHODS = list_methods()
RECIPES = [(m, r) for m in METHODS for r in recipes(m)]


def test_the_methods_of_this_library_are_found(): assert {'finetune', 'neggrad', 'lotus'} <= set(METHODS)


@pytest.mark.parametrize('name', METHODS)
def test_contract(name):
    recipe = {k: v for k, v in recipes(name).get('digits', {}).items() if k in get_method(name).defaults}
    accuracies = check_method(name, **{**recipe, **quick(name, 2)})
    assert set(accuracies) == {'forget', 'retain', 'test'} and all(0 <= a <= 1 for a in accuracies.values())


@pytest.mark.parametrize('name', METHODS)
def test_runs_without_any_hyper_parameter(name, task):
    new = solve(task, name)
    assert new.hparams == {**get_method(name).defaults, 'batch_size': task.batch_size} and new.seconds > 0


@pytest.mark.parametrize('name', METHODS)
def test_facts_that_tables_print(name):
    m = get_method(name)
    assert m.title and m.paper.startswith('https://') and m.fn.__doc__


@pytest.mark.parametrize('name, recipe', RECIPES)
def test_every_recipe_runs(name, recipe, task):
    given = recipes(name)[recipe]
    assert given['source']
    short = quick(name, 1)
    if nested := given.get('settings'): short['settings'] = {**nested, **{k: min(nested[k], 20) for k in ('epochs', 'msteps', 'steps') if k in nested}}
    new = solve(task, name, recipe=recipe, **short)
    for k, v in {**given, **short}.items():
        if k != 'source': assert new.hparams[k] == v


@pytest.mark.parametrize('name', METHODS)
def test_a_slip_of_the_pen_is_answered(name, task):
    with pytest.raises(ValueError, match=f"Unknown method .* Did you mean '{name}'"): solve(task, name[:-1] + 'x' + name[-1])
    for k in get_method(name).defaults:
        with pytest.raises(TypeError, match=f"Unknown {name} hyper-parameter .* Did you mean '{k}'"): solve(task, name, **{k + 'x': 1})
    for r in recipes(name):
        with pytest.raises(ValueError, match=f"Unknown recipe of {name} .* Did you mean '{r}'"): solve(task, name, recipe=r + 'x')
