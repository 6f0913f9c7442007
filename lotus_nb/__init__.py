"Make a trained image classifier forget chosen training images, and show how well it forgot."
__version__ = "0.1.0"

_PUBLIC = {
    'unlearn': 'methods.core', 'solve': 'methods.core', 'list_methods': 'methods.core', 'check_method': 'methods.core',
    'UnlearnTask': 'task', 'evidence': 'metrics.core', 'evaluate': 'evaluation',
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    "Import torch only when a public name is first used, so that `lotus-nb --help` answers at once."
    if name not in _PUBLIC: raise AttributeError(f"module 'lotus_nb' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f'lotus_nb.{_PUBLIC[name]}'), name)


def __dir__(): return sorted([*globals(), *_PUBLIC])
