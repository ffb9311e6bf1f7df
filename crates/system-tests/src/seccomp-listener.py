"""Runs a program behind a seccomp filter that allows everything and listens, as that of a
container engine or a tracer may: the kernel lets only one filter listen (seccomp_unotify(2)).

With `--landlock N` before the program it says in the kernel's place that its Landlock has ABI N.
"""

import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import sys


class Filter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter))]


PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
LOAD, EQUALS, RETURN = 0x20, 0x15, 0x06
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
# Offsets in `struct seccomp_data`.
NUMBER, THIRD_ARGUMENT = 0, 32
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_CREATE_RULESET_VERSION = 1
RECEIVE, SEND = 0xC0502100, 0xC0182101
SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]

libc = ctypes.CDLL(None, use_errno=True)


def listen(filters):
    """Installs a filter for this process and returns its listener."""
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    array = (Filter * len(filters))(*(Filter(*one) for one in filters))
    program = Program(len(filters), array)
    listener = libc.syscall(
        SECCOMP,
        SECCOMP_SET_MODE_FILTER,
        SECCOMP_FILTER_FLAG_NEW_LISTENER,
        ctypes.byref(program),
    )
    assert listener >= 0, os.strerror(ctypes.get_errno())
    return listener


def answer(listener, version):
    """Answers whoever asks for the version, until nobody is left behind the filter."""
    waits = select.poll()
    waits.register(listener, select.POLLIN)
    while waits.poll()[0][1] & select.POLLIN:
        try:
            asked = fcntl.ioctl(listener, RECEIVE, bytes(80))
            (number,) = struct.unpack_from("Q", asked)
            fcntl.ioctl(listener, SEND, struct.pack("QqiI", number, version, 0, 0))
        except FileNotFoundError:
            pass  # Whoever asked is gone.


if sys.argv[1] == "--landlock":
    version, arguments = int(sys.argv[2]), sys.argv[3:]
    near, far = socket.socketpair()
    # Nobody's child, so that the program has none that it does not know.
    if os.fork() == 0:
        if os.fork() > 0:
            os._exit(0)
        (listener,) = socket.recv_fds(far, 1, 1)[1]
        os.closerange(0, listener)
        os.closerange(listener + 1, 1024)
        answer(listener, version)
        os._exit(0)
    os.wait()
    listener = listen(
        [
            (LOAD, 0, 0, NUMBER),
            (EQUALS, 0, 3, LANDLOCK_CREATE_RULESET),
            (LOAD, 0, 0, THIRD_ARGUMENT),
            (EQUALS, 0, 1, LANDLOCK_CREATE_RULESET_VERSION),
            (RETURN, 0, 0, NOTIFY),
            (RETURN, 0, 0, ALLOW),
        ]
    )
    socket.send_fds(near, [b"x"], [listener])
else:
    arguments = sys.argv[1:]
    # Once nobody has it any more, another filter may listen.
    os.set_inheritable(listen([(RETURN, 0, 0, ALLOW)]), True)
os.execv(arguments[0], arguments)
