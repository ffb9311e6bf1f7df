"""Runs a command with a relay between it and the gateway, which writes down every byte that comes
back: one file per connection, in the directory that is its first argument."""

import os
import socket
import subprocess
import sys
import threading

directory, command = sys.argv[1], sys.argv[2:]
os.makedirs(directory)
gateway = int(os.environ["OPENAI_BASE_URL"].split(":")[2].split("/")[0])


def pump(source, target, record=None):
    try:
        while piece := source.recv(65536):
            if record:
                record.write(piece)
                record.flush()
            target.sendall(piece)
    except OSError:
        pass
    # Whoever hangs up is heard of on the other side at once.
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def relay(client, number):
    above = socket.create_connection(("127.0.0.1", gateway))
    for end in (client, above):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=pump, args=(client, above), daemon=True).start()
    with open(f"{directory}/{number}", "wb") as record:
        pump(above, client, record)


def accept(listener):
    number = 0
    while True:
        client, _ = listener.accept()
        number += 1
        threading.Thread(target=relay, args=(client, number), daemon=True).start()


listener = socket.create_server(("127.0.0.1", 0), backlog=64)
threading.Thread(target=accept, args=(listener,), daemon=True).start()
own = f":{listener.getsockname()[1]}"
environment = dict(os.environ)
for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
    environment[name] = environment[name].replace(f":{gateway}", own)
sys.exit(subprocess.run(command, env=environment).returncode)
