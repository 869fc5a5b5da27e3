"""An engine as a process of its own: registered again whenever its agent is lost.

Run as `live_engine.py SOCKET ROLE`. Commands are lines of JSON on stdin, each answered by a line
with its number: {"id", "do": "prefill" | "decode", "room", "peer"}. Payloads are made from the
room's number, so both sides know them.
"""

import json
import random
import sys
import threading

from disagg_transfer.client import AgentClient, AgentUnavailableError, Component, TransferFailed

PARTS = tuple(
    Component(name=name, state_type=kind, item_bytes=size, layers=1, dtype="uint8", page_size=page)
    for name, kind, size, page in (("kv", "kv", 65536, 16), ("conv", "mamba", 70_000, 0))
)
ITEMS = {"kv": 4, "conv": 1}


def payload(room, part):
    return random.Random(f"{room} {part.name}").randbytes(part.item_bytes * ITEMS[part.name])


class Engine:
    def __init__(self, socket_path, role):
        self.socket_path, self.role = socket_path, role
        self.client = None
        self.connected = threading.Event()
        threading.Thread(target=self._stay_connected, daemon=True).start()

    def _stay_connected(self):
        while True:
            try:
                client = AgentClient.connect(
                    self.socket_path,
                    role=self.role,
                    model="tiny",
                    components=PARTS,
                    page_size=16,
                    timeout_s=60,
                )
            except AgentUnavailableError:
                continue
            self.client = client
            self.connected.set()
            client.lost.wait()
            self.connected.clear()
            client.close()

    def prefill(self, room):
        client = self.client
        client.begin(room)
        try:
            for part in PARTS:
                data = payload(room, part)
                extent = client.reserve(room, len(data), timeout_s=5)
                extent.view[:] = data
                last = part is PARTS[-1]
                client.offer(room, part.name, extent, items=ITEMS[part.name], last=last)
            client.wait_released(room, 20)
        except TransferFailed as failure:
            client.abort(room, str(failure)[:200])
            raise

    def decode(self, room, peer):
        client = self.client
        arrival = client.pull(room, peer=peer, expect=ITEMS)
        for part in PARTS:
            assert bytes(arrival.payloads[part.name].view) == payload(room, part)
        client.release(room)

    def answer(self, command):
        try:
            if not self.connected.wait(20):
                raise TimeoutError("never connected")
            if command["do"] == "prefill":
                self.prefill(command["room"])
            else:
                self.decode(command["room"], command["peer"])
        except TransferFailed as failure:
            told = {"cause": failure.cause, "stage": failure.stage, "detail": failure.detail}
        else:
            told = {"cause": None}
        say({"id": command["id"], **told})


def say(words):
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main():
    engine = Engine(sys.argv[1], sys.argv[2])
    engine.connected.wait()
    say({"id": 0})
    for line in sys.stdin:
        threading.Thread(target=engine.answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
