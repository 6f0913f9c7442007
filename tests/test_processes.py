"Processes that are copies of one that has imported torch: killed, interrupted and read as if they had been started from nothing."
import signal

from processes import Python


def test_output_errors_and_status_come_back():
    p = Python("import sys; print('out', *sys.argv[1:]); print('err', file=sys.stderr); sys.exit(3)", 'a', 1)
    assert (p.communicate(), p.returncode) == (['out a 1\n', 'err\n'], 3)


def test_nothing_of_the_library_is_there_beforehand():
    p = Python("import sys; print('torch' in sys.modules, [m for m in sys.modules if m.startswith('lotus_nb')])")
    assert p.communicate() == ['True []\n', '']


def test_killed_only_while_it_runs():
    p = Python("print('here', flush=True); import time; time.sleep(60)")
    assert p.stdout.readline() == 'here\n'
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    ended = Python('pass')
    assert ended.communicate() == ['', ''] and ended.returncode == 0
    ended.send_signal(signal.SIGKILL)                            # as with `Popen`, no error: there is nobody
    assert ended.wait() == 0
