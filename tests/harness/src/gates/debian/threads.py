"""Python's threads, processes and C types over glibc's: each line says what held."""
import ctypes
import multiprocessing
import os
import signal
import threading


def threads():
    lock, total = threading.Lock(), [0]

    def add():
        for _ in range(200):
            with lock:
                total[0] += 1

    many = [threading.Thread(target=add) for _ in range(50)]
    for t in many:
        t.start()
    for t in many:
        t.join()
    assert total[0] == 10000, total


def events():
    barrier, event, seen = threading.Barrier(8), threading.Event(), []

    def meet():
        seen.append(barrier.wait())
        event.wait()
        seen.append(-1)

    many = [threading.Thread(target=meet) for _ in range(8)]
    for t in many:
        t.start()
    event.set()
    for t in many:
        t.join()
    assert sorted(seen) == [-1] * 8 + list(range(8)), seen


def square(n):
    return n * n


def processes():
    with multiprocessing.Pool(3) as pool:
        assert pool.map(square, range(40)) == [n * n for n in range(40)]
    counter = multiprocessing.Value("i", 0)

    def add():
        for _ in range(100):
            with counter.get_lock():
                counter.value += 1

    many = [multiprocessing.Process(target=add) for _ in range(4)]
    for p in many:
        p.start()
    for p in many:
        p.join()
    assert counter.value == 400, counter.value


def c_library():
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.getpid() == os.getpid()
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    values = (ctypes.c_int * 5)(5, 1, 4, 2, 3)
    libc.qsort(values, 5, ctypes.sizeof(ctypes.c_int), compare(lambda a, b: a[0] - b[0]))
    assert list(values) == [1, 2, 3, 4, 5], list(values)


def killed():
    pid = os.fork()
    if pid == 0:
        for _ in range(5):
            threading.Thread(target=threading.Event().wait).start()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


for test in (threads, events, processes, c_library, killed):
    test()
    print(test.__name__, "held")
