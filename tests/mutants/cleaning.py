"Mutants of the cleaning page: bands that lose pairs, orders that depend on a folder, pictures that nobody sees."
import io

import numpy as np
import pandas as pd
from PIL import Image

import lotus_nb.cleaning as cleaning
from mutants.common import refused, rewritten


def _pairs(a, b, radius, same, bands, agree): return sorted(tuple(sorted(p)) for u, v in cleaning._by_bands(a, b, radius, same, bands, agree) for p in zip(u.tolist(), v.tolist()))


def _dealt(n): return [list(range(64))[m::n] for m in range(n)]


# Checks. They take the digits task, which they do not need, and raise AssertionError when something is wrong.

def no_pair_is_lost(_):
    "One flipped bit in each of six bands of seven, and two bits in each of three bands: what bands may miss."
    rng = np.random.default_rng(0)
    for radius in (1, 4, 6):
        x = rng.integers(0, 2**64, 2000, dtype=np.uint64)
        flips = [sum(1 << int(b) for b in rng.choice(64, radius, replace=False)) for _ in x]
        found = cleaning.pairs_within(np.concatenate([x, x ^ np.array(flips, np.uint64)]), radius=radius).index
        assert {(i, i + 2000) for i in range(2000)} <= set(map(tuple, found.tolist())), radius


def each_pair_comes_once(_):
    x = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    x = np.unique(np.concatenate([x, x ^ np.uint64(1)]))              # twins that agree in all bands but one
    for agree in (1, 2, 3):
        found = _pairs(x, x, 4, True, _dealt(4 + agree), agree)
        assert len(found) == len(set(found)) == 1000, (agree, len(found))


def clusters_do_not_hold_the_search_up(_):
    "Where bands do not help, the work ends after as much as the plain way takes, and nothing is lost or found twice."
    x = np.arange(2048, dtype=np.uint64)                              # 53 bits that never vary
    bands = [list(range(12 + 10*m, 22 + 10*m)) for m in range(5)] + [[*range(12), 62, 63]]
    compared, real = [], cleaning._ranges

    def counted(lo, hi, *size):
        compared.append(int((hi - lo).sum()))
        return real(lo, hi, *size)
    cleaning._ranges = counted
    try: found = _pairs(x, x, 5, True, bands, 1)
    finally: cleaning._ranges = real
    assert sum(compared) < 2048*2047/2 and len(found) == len(set(found)) == int(np.triu(np.bitwise_count(x[:, None] ^ x) <= 5, 1).sum())


def _frame(): return pd.DataFrame({'file': ['b', 'a', 'c', 'd', 'e'], 'split': ['one', 'one', 'two', 'one', 'two'], 'label': ['x', 'y', 'x', 'x', 'x'],
                                   'hash': pd.array([7, 7, 0, 0, 1], dtype='UInt64'), 'width': [9, 5, 5, 5, 5], 'height': 5, 'error': ''})


def the_order_of_files_does_not_matter(_):
    for keep, stays in (('name', 'a'), ('pixels', 'b')):
        for f in (_frame(), _frame()[::-1]):
            kept = cleaning.clean_splits(f, [('one', 'two')], keep=keep).frame.query('kept')
            assert sorted(kept['file']) == sorted([stays, 'c', 'e']), (keep, list(kept['file']))


def chains_do_not_swallow_a_set(_):
    "1 is a twin of 0, 3 of 1, 7 of 3: 0 and 3 stay."
    twin, far = cleaning._within(np.array([0, 1, 3, 7], np.uint64), 1)
    assert twin.tolist() == [-1, 0, -1, 2] and far.tolist() == [0, 1, 0, 1]


def a_crowd_is_cleaned_like_a_few(_):
    "Whether pairs fit into a table or not, the same stay; and what goes has the nearest of them as its twin."
    rng = np.random.default_rng(0)
    near = np.bitwise_xor.reduce(np.uint64(1) << rng.integers(0, 64, (300, 3)).astype(np.uint64), axis=1)
    x = pd.unique(rng.integers(0, 2**64, 5, dtype=np.uint64)[np.arange(300) % 5] ^ near)
    far = np.bitwise_count(x[:, None] ^ x).astype(int)
    want = np.zeros(len(x), bool)
    for i in range(len(x)): want[i] = not (want[:i] & (far[i, :i] <= 4)).any()
    for most in (10**6, 1000, 1): assert (cleaning._stays(x, 4, most) == want).all(), most
    twin, distance = cleaning._within(x, 4)
    assert (distance[~want] == far[~want][:, want].min(1)).all() and (twin[want] == -1).all() and want[twin[~want]].all()


def regions_are_as_near_as_the_nearest_two(_):
    x = np.empty(3, object)
    x[:] = [(0b0, 0b111 << 40), (0b111 << 40 | 1 << 50, 0b11), (1 << 63 | 0xffff,)]
    found = cleaning._image_pairs(x, None, 8)
    assert found.index.tolist() == [[0, 1]] and found.distance.tolist() == [1]
    assert cleaning._nearest(x[:1], x[1:], 8)[1].tolist() == [1]


def steps_are_taken_in_order(_):
    "Validation gives way to test before test gives way to train: what test loses has cost validation its twin already."
    f = pd.DataFrame({'file': list('abcd'), 'split': ['forget', 'retain', 'val', 'test'], 'hash': pd.array([1, 9, 9, 9], dtype='UInt64')})
    done = cleaning.clean_splits(f)
    assert done.frame.query('kept')['file'].tolist() == ['a', 'b'] and done.steps['dropped'].tolist()[:3] == [0, 1, 1]


def what_is_gone_is_gone_once(_):
    "Two copies in forget of an image in retain: both give way to it, and none is left to be the other's twin."
    f = pd.DataFrame({'file': list('abc'), 'split': ['forget', 'forget', 'retain'], 'hash': pd.array([9, 9, 9], dtype='UInt64')})
    done = cleaning.clean_splits(f, [('forget', 'retain')])
    assert done.steps['dropped'].tolist() == [2, 0, 0] and done.frame['twin'].tolist() == ['c', 'c', '']


def the_twin_has_the_last_word(_):
    "Contradicting labels are listed, and only those."
    assert cleaning.clean_splits(_frame(), [('one', 'two')]).conflicts[['file', 'label', 'twin', 'twin_label']].values.tolist() == [['b', 'x', 'a', 'y']]


def _picture(): return Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)


def _file(im, form, **kwargs):
    f = io.BytesIO()
    im.save(f, form, **kwargs)
    return f


def _near(file): return (cleaning.image_hash(cleaning.open_picture(file)[0]) ^ cleaning.image_hash(_picture())).bit_count() <= 2


def turned_pictures_are_turned_back(_):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert _near(_file(_picture().rotate(90), 'JPEG', quality=95, exif=exif))


def sixteen_bits_are_scaled(_): assert _near(_file(Image.fromarray(np.asarray(_picture()).astype(np.uint16)*257), 'PNG'))


def bombs_are_not_unpacked(_): refused(lambda: cleaning.open_picture(_file(_picture(), 'PNG'), max_pixels=4000), '64×64 pixels are more than 4,000')


def unreadable_files_stay_in_the_table(_):
    f = _frame().assign(hash=pd.array([7, None, 0, 0, 1], dtype='UInt64'), error=['', 'broken', '', '', ''])
    done = cleaning.clean_splits(f, [('one', 'two')]).frame
    assert len(done) == 5 and done.query("why == 'unreadable'")['file'].tolist() == ['a'] and done['kept'].sum() == 3


def files_outside_are_not_opened(_):
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'set').mkdir()
        _picture().save(Path(d)/'secret.png')
        (Path(d)/'set'/'link.png').symlink_to(Path(d)/'secret.png')
        found = cleaning.hash_images(['link.png', '../secret.png', f'{d}/secret.png'], root=Path(d)/'set')
    assert found['hash'].isna().all() and found['error'].str.startswith('refused').all(), found


def _put(name, old, new): return lambda: rewritten(cleaning, name, old, new)


MUTATIONS = [
    ('as many bands as bits may differ', 'imagined: one band too few', _put('_plan', 'dealt = [order[m::radius + k] for m in range(radius + k)]',
     'dealt = [order[m::max(k, radius + k - 1)] for m in range(max(k, radius + k - 1))]'), no_pair_is_lost, None),
    ('pairs found again in other bands', 'imagined: no rule for repeats', _put('_by_bands', 'new = _differs(diff, earlier)', 'new = np.ones(len(diff), bool)'),
     each_pair_comes_once, None),
    ('bands that compare all with all, again and again', 'imagined: no bound on the work', _put('_by_bands', 'if work > _PLAIN*_count(a, b, same): break', ''),
     clusters_do_not_hold_the_search_up, None),
    ('the first copy that the folder lists', 'Spartalis et al., clean_MUFAC.ipynb: os.listdir', _put('_ordered', "return frame[frame['hash'].notna()].sort_values(['split', 'file'], ignore_index=True)",
     "return frame[frame['hash'].notna()].reset_index(drop=True)"), the_order_of_files_does_not_matter, None),
    ('chains of twins as one group', 'imagined: connected components', _put('_stays', 'if out[i]: out[j] = False', 'out[j] = False'), chains_do_not_swallow_a_set, None),
    ('halves of a crowd that do not know of each other', 'imagined', _put('_stays', 'rest = half + np.flatnonzero(_nearest(x[half:], x[:half][out[:half]], radius)[0] < 0)', 'rest = half + np.arange(len(x) - half)'),
     a_crowd_is_cleaned_like_a_few, None),
    ('any twin instead of the nearest', 'imagined', _put('_nearest', 'np.minimum.at(best, i, np.bitwise_count(u ^ v).astype(np.int64) << 48 | other[first[j]])', 'best[i] = np.bitwise_count(u ^ v).astype(np.int64) << 48 | other[first[j]]'),
     a_crowd_is_cleaned_like_a_few, None),
    ('regions as far apart as their farthest', 'imagined', _put('_image_pairs', 'np.lexsort((distance, code))', 'np.lexsort((-distance.astype(int), code))'), regions_are_as_near_as_the_nearest_two, None),
    ('a picture that is its own twin', 'imagined', _put('_image_pairs', 'np.flatnonzero(p != q) if y is None else np.arange(len(p))', 'np.arange(len(p))'), regions_are_as_near_as_the_nearest_two, None),
    ('all steps against the splits as they came', 'imagined: one table of pairs for all steps', _put('clean_splits', "np.flatnonzero(np.isin(split, names) & (why == ''))", 'np.flatnonzero(np.isin(split, names))'),
     what_is_gone_is_gone_once, None),
    ('steps from the last to the first', 'imagined', _put('clean_splits', 'for name, *others in order:', 'for name, *others in reversed(order):'), steps_are_taken_in_order, None),
    ('labels of twins not compared', 'Spartalis et al., clean_MUFAC.ipynb', _put('_conflicts', 'odd = (twin >= 0) &', 'odd = (twin > len(f)) &'), the_twin_has_the_last_word, None),
    ('a picture as it is stored, not as it is shown', 'imagehash on Image.open: the EXIF tag is not read', _put('open_picture', 'if turn not in (0, 1):', 'if False:'), turned_pictures_are_turned_back, None),
    ('16 bits clipped to white', "Pillow's convert('L')", _put('open_picture', "if im.mode[0] in 'IF':", 'if False:'), sixteen_bits_are_scaled, None),
    ('bombs unpacked', 'imagined', _put('open_picture', 'if im.width*im.height > max_pixels:', 'if False:'), bombs_are_not_unpacked, None),
    ('unreadable images dropped in silence', 'imagined: dropna at the end', _put('_with_unreadable', "frame.merge(f[['split', 'file', 'kept', 'why', 'twin', 'distance']], 'left', ", "frame.merge(f[['split', 'file', 'kept', 'why', 'twin', 'distance']], 'inner', "),
     unreadable_files_stay_in_the_table, None),
    ('links followed out of the folder', 'imagined', _put('_listed', 'if base is not None and not path.resolve().is_relative_to(base):', 'if False:'), files_outside_are_not_opened, None),
]
