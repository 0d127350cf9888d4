import os, time


def find_engine():
    """The pid of the engine: an ancestor."""
    pid = os.getppid()
    for _ in range(4):
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            if file.read().split(b"\0")[1:2] == [b"engine"]:
                return pid
        with open("/proc/%d/stat" % pid) as file:
            pid = int(file.read().rsplit(")", 1)[1].split()[1])
    return 0


def note(n):
    """One line of the ledger; what is appended by one write stays together."""
    with open("ledger", "ab", buffering=0) as ledger:
        ledger.write(b"%d %d %d\n" % (n, ENGINE, os.getpid()))


ENGINE = find_engine()


def work(n):
    note(n)
    print(ENGINE, os.getpid())
    time.sleep((0.001, 0.01, 0.05, 0.6)[n % 50 % 4 if n % 50 < 12 else 0])
    return n * n + 1


def large(n):
    note(n)
    print(ENGINE, os.getpid())
    time.sleep(0.05)
    return "%d:" % n + "x" * 5_000_000


def add(a, b):
    return a + b
