"""Processes of their own that need not import torch first: copies of one that has imported what all of this library needs, and nothing of the library itself.

Where a start from nothing is what is tested, `subprocess` does it.
"""
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['matplotlib.pyplot', 'nbdev.test', 'pandas', 'scipy.stats', 'sklearn.linear_model', 'timm', 'torch'])


def _run(code, args, env, *pipes):
    for n, pipe in enumerate(pipes, 1): os.dup2(pipe.fileno(), n); pipe.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)     # a test run in the background would hand down deafness to it
    os.environ.update(env)
    sys.argv = ['-c', *args]
    exec(code, {'__name__': '__main__'})


class Python:
    "Python code in a new process: what `subprocess.Popen([sys.executable, '-c', code, *args], text=True)` with two pipes would be."
    def __init__(self, code, *args, env=None):
        ends = [FORKS.Pipe(False) for _ in range(2)]
        self.process = FORKS.Process(target=_run, args=(code, [*map(str, args)], env or {}, *(w for _, w in ends)))
        self.process.start()
        for _, w in ends: w.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(r.fileno())) for r, _ in ends)

    @property
    def returncode(self): return self.process.exitcode

    def poll(self): return self.process.exitcode

    def send_signal(self, s):
        "Nothing is sent to a process that has ended: its number may be another's by now."
        if self.poll() is None: os.kill(self.process.pid, s)

    def wait(self):
        self.process.join()
        return self.returncode

    def communicate(self):
        "What it says from now on, when it has ended: output and errors."
        with ThreadPoolExecutor(2) as both: said = [f.result() for f in [both.submit(f.read) for f in (self.stdout, self.stderr)]]
        self.wait()
        return said
