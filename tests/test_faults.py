"The command line is killed, hard, and started again."
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from processes import Python

from lotus_nb.bench import same_results

COMMAND = ['from lotus_nb.cli import main; main()', 'demo', '--seeds', '2', '--method', 'finetune', '--method', 'lotus', '--out']


def start(out): return Python(*COMMAND, out)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp('undisturbed')
    p = start(out); _, err = p.communicate()
    assert p.returncode == 0, err
    return out


WHEN = ['training original', 'training gold', 'LoTUS', 'evaluating', 'seed 1 (2 of 2) · Finetuning']


def test_killed_in_each_stage(undisturbed, tmp_path):
    "Each attempt is killed when it says what it is doing; what has been written by then is whole."
    for stage in WHEN:
        p = start(tmp_path)
        for line in p.stderr:
            if stage in line: break
        time.sleep(.1)
        p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL
        p.communicate()
        for f in tmp_path.glob('cells/[!.]*.json'): pd.read_json(f, typ='series')
    p = start(tmp_path); _, err = p.communicate()
    assert p.returncode == 0, err
    read = lambda folder: pd.read_csv(folder/'results.csv', dtype={'hparams': str})
    assert same_results(read(undisturbed), read(tmp_path))
    assert not (tmp_path/'ckpt').exists()
    assert {f.name for f in Path(tmp_path).iterdir()} == {'results.csv', 'checks.csv', 'report.html', 'figure.png', 'cells', 'evidence', 'models'}


def test_interrupted_says_how_to_go_on(tmp_path):
    p = start(tmp_path)
    p.stderr.readline()
    p.send_signal(signal.SIGINT)
    _, err = p.communicate()
    assert p.returncode == 130 and 'The same command goes on from here' in err


def test_plain_lines_when_not_a_terminal(undisturbed, tmp_path):
    p = subprocess.run([sys.executable, '-c', *COMMAND, str(undisturbed)], capture_output=True, text=True)
    assert p.returncode == 0 and '\r' not in p.stdout + p.stderr and p.stderr == ''      # all is done already: nothing to say
