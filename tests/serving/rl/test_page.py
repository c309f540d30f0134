"""`/rl`: what it is served with, and a person labeling rollouts by keys in a real browser."""

import json
import re
import urllib.error
import urllib.request

from rl_robot import Robot, states, until

from syvla.serving.rl.ledger import Ledger


def fetch(server, path, **headers):
    """Status, headers and text, as a browser would ask."""
    request = urllib.request.Request(f"http://{server.url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_the_page_stands_alone_and_holds_no_data(serve_run):
    status, headers, text = fetch(serve_run(token="secret"), "/rl")
    assert status == 200, "open, since it asks for the token itself"
    assert not re.findall(r"https?://|src=|href=|@import|url\(", text), "no external resources"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"], "no other page may put it in a frame"
    assert "hash 0" not in text


def test_no_other_web_page_may_ask(serve_run):
    server = serve_run()
    own = f"http://{server.url}"
    assert fetch(server, "/rl/status", Origin=own)[0] == 200
    for origin in (
        "http://other.example",
        own.replace("http:", "https:"),
        f"http://127.0.0.1:{server.port + 1}",
        "null",
    ):
        assert fetch(server, "/rl/status", Origin=origin)[0] == 403
    rebound = f"rebound.example:{server.port}"
    assert fetch(server, "/rl/status", Origin=f"http://{rebound}", Host=rebound)[0] == 421, "a name that points here"
    assert fetch(server, "/v1/metadata", Origin=own)[0] == 403, "the page asks for its own paths alone"


def test_with_a_token_the_page_works_from_other_machines(serve_run):
    server = serve_run(token="secret")
    named = f"robot.example:{server.port}"
    browser = {"Origin": f"http://{named}", "Host": named}
    assert fetch(server, "/rl/status", **browser)[0] == 401
    assert fetch(server, "/rl/status", **browser, Authorization="Bearer secret")[0] == 200


READY = "!document.getElementById('success').disabled && document.querySelectorAll('#frames img').length > 0"


def test_a_key_means_the_rollout_that_was_shown_however_slow_the_server_is(serve_run, open_page):
    server = serve_run()
    robot = Robot(server)
    first, second = robot.rollout(), robot.rollout()

    def outcomes():
        return [robot.call(f"/rl/episodes/{name}")["outcome"] for name in (first, second)]

    page = open_page(f"http://{server.url}/rl")
    until(lambda: page.value(READY), 30)
    page.call("Network.enable")
    page.call(
        "Network.emulateNetworkConditions", offline=False, latency=500, downloadThroughput=-1, uploadThroughput=-1
    )
    page.press(
        "f", when=f"waiting && shown === '{first}' && {READY}"
    )  # while an answer is on its way that lists it still
    page.press("f", when="true")  # nothing is shown
    page.press("u", when="true")  # the answer to the label has not come
    shown = []
    until(lambda: shown.append(page.value("correcting || shown")) or shown[-1] is True, 30)
    assert first not in shown
    page.press("s", when=f"shown === '{first}' && correcting && {READY}")
    until(lambda: outcomes() == [1, None], 30)
    page.press("f", when=f"shown === '{second}' && {READY}")
    until(lambda: outcomes() == [1, 0], 30)


def test_a_person_labels_rollouts_with_two_keys(serve_run, open_page):
    server = serve_run()
    robot = Robot(server)
    names = robot.rollout(), robot.rollout()

    def wait_for(*outcomes):
        def given():
            return {robot.call(f"/rl/episodes/{name}")["outcome"] for name in names}

        until(lambda: given() == set(outcomes), 30)

    page = open_page(f"http://{server.url}/rl")
    page.press("s", when=READY)
    wait_for(1, None)
    page.press("f", when=READY)
    wait_for(1, 0)
    assert states(robot)["sealed"] == 2
    until(lambda: "No rollout waits." in page.value("document.body.textContent"), 30)
    page.press("u", when="!document.getElementById('undo').disabled")
    page.press("s", when=READY)  # of the second one again
    wait_for(1)


def test_a_person_discards_and_goes_back_over_several_decisions(serve_run, run, open_page):
    """Also over a label from before the page was opened; what the trainer set aside can be used by a click."""
    server = serve_run()
    robot = Robot(server)
    first, second, third = (robot.rollout() for _ in range(3))
    robot.call(f"/rl/episodes/{first}/reward", {"reward": 1})

    def state(name):
        return robot.call(f"/rl/episodes/{name}")["state"]

    page = open_page(f"http://{server.url}/rl")
    page.press("s", when=f"shown === '{second}' && {READY}")
    page.press("d", when=f"shown === '{third}' && {READY}")
    until(lambda: (state(second), state(third)) == ("sealed", "discarded"), 30)
    page.press("u", when="!waiting && decided.length === 2")
    until(lambda: state(third) == "awaiting_reward", 30)
    page.press("u", when=f"shown === '{third}' && correcting && {READY}")
    page.press("u", when=f"shown === '{second}' && correcting && {READY}")
    page.press("f", when=f"shown === '{first}' && correcting && {READY}")
    until(lambda: robot.call(f"/rl/episodes/{first}")["outcome"] == 0, 30)
    assert robot.call(f"/rl/episodes/{second}")["outcome"] == 1, "gone back over, and left as it was"
    Ledger(run).set_aside(second, "too old: 1 version(s) behind")
    until(lambda: page.value("document.getElementById('reasons').textContent.includes('too old: 1')"), 30)
    page.value("document.querySelector('#reasons button').click()")
    until(lambda: state(second) == "sealed", 30)


def test_a_person_plays_relabels_takes_over_and_stops(serve_run, run, open_page):
    server = serve_run()
    robot = Robot(server)
    name, running = robot.rollout(), robot.begin()
    robot.act(running)
    page = open_page(f"http://{server.url}/rl")
    page.press("p", READY)
    playing = "document.getElementById('thought').textContent"
    until(lambda: page.value(playing) == "observation 1 of 1", 30)
    assert page.value("document.querySelectorAll('#now img')[0].naturalWidth") == 8
    assert page.value("document.getElementById('frames').offsetHeight") == 0, "the player stands in their place"
    page.press("s", READY)
    until(lambda: robot.call(f"/rl/episodes/{name}")["outcome"] == 1, 30)
    again = "document.querySelector('#again button')"
    until(lambda: page.value(f"{again} !== null"), 30)
    page.value(f"{again}.click()")
    page.press("f", READY)
    until(lambda: robot.call(f"/rl/episodes/{name}")["outcome"] == 0, 30)
    page.value("document.querySelectorAll('#running button')[1].click()")
    until(lambda: robot.call("/rl/status")["running"][0]["takeover"], 30)
    assert robot.act(running)["takeover"]
    until(lambda: page.value("document.querySelector('#running .asked').textContent") == "Give it back", 30)
    page.value("document.querySelectorAll('#running button')[0].click()")
    until(lambda: states(robot)["awaiting_reward"] == 1, 30)
    Ledger(run).note("update 3 is not published: nothing is reinforced")
    until(lambda: "update 3 is not published" in page.value("document.getElementById('notes').textContent"), 30)


def test_a_person_sees_what_guided_an_update(serve_run, run, open_page):
    server = serve_run()
    robot = Robot(server)
    name = robot.begin()
    robot.act(name)
    robot.act(name, seed=4, executed_steps=2)
    robot.act(name, seed=5, executed_steps=2)
    robot.call(f"/rl/episodes/{name}/end", {"executed_steps": 4})
    robot.call(f"/rl/episodes/{name}/reward", {"reward": 1})
    Ledger(run).claim(0, [name])
    Ledger(run).consume(0, [name])
    picture = robot.call(f"/rl/episodes/{name}/frames")["frames"][0]["views"]["center"]
    expert = {"dataset": "lift", "episode": 7, "frame": 12, "view": "center", "picture": picture, "similarity": 0.875}
    decisions = [
        {"control_step": 0, "value": 0.25, "advantage": 0.5, "label": "positive", "experts": [expert]},
        {"control_step": 2, "value": 0.75, "advantage": -0.125, "label": "negative", "experts": []},
        {"control_step": 4, "advantage": 1.5, "experts": []},
    ]
    (run / "guidance").mkdir()
    (run / "guidance" / f"{name}.json").write_text(json.dumps({"update": 0, "decisions": decisions}))
    page = open_page(f"http://{server.url}/rl")
    look = "document.querySelector('#used button')"
    until(lambda: page.value(f"{look} !== null"), 30)
    page.value(f"{look}.click()")
    numbers = "document.getElementById('numbers').textContent"
    until(lambda: page.value(numbers).startswith("update 1: advantage +1.50;"), 30)  # without a value model
    page.value("at('position').value = 1; at('position').oninput()")
    negative = "update 1: value 0.75, advantage -0.13, learned as negative; no similar expert samples"
    assert page.value(numbers) == negative
    page.value("at('position').value = 0; at('position').oninput()")
    positive = "update 1: value 0.25, advantage +0.50, learned as positive; the most similar expert samples:"
    assert page.value(numbers) == positive
    assert (
        page.value("document.querySelector('#experts figcaption').textContent")
        == "similarity 0.875, lift, episode 7, frame 12"
    )
    assert page.value("document.querySelector('#curve polyline').getAttribute('points')") == "0,17.5 50,6.5"
    assert page.value("document.getElementById('success').disabled"), "nothing is decided about it any more"


def test_a_gamepad_labels_once_per_press(serve_run, open_page):
    """The browser's own interface is answered by a pad of which a test presses buttons."""
    server = serve_run()
    robot = Robot(server)
    names = [robot.rollout(), robot.rollout()]
    page = open_page(f"http://{server.url}/rl")
    until(lambda: page.value(READY), 30)
    buttons = "[0, 1, 2, 3, 4].map((n) => ({ pressed: pad_down.includes(n) }))"
    page.value(f"window.pad_down = []; navigator.getGamepads = () => [{{ index: 0, buttons: {buttons} }}]")
    page.value("window.pad_down = [0]")  # and held
    until(lambda: [robot.call(f"/rl/episodes/{name}")["outcome"] for name in names] == [1, None], 30)
    until(lambda: page.value(READY), 30)
    page.value("window.pad_down = []")
    until(lambda: page.value("!Object.values(held).includes(true)"), 30)
    assert states(robot)["awaiting_reward"] == 1, "a button that stays down labels nothing more"
    page.value("window.pad_down = [1]")
    until(lambda: [robot.call(f"/rl/episodes/{name}")["outcome"] for name in names] == [1, 0], 30)


def test_a_person_grades_by_digits(serve_run, open_page):
    server = serve_run(graded_rewards=True)
    robot = Robot(server)
    names = [robot.rollout(), robot.rollout()]
    page = open_page(f"http://{server.url}/rl")
    page.press("7", READY + " && !document.getElementById('grades').hidden")
    until(lambda: robot.call(f"/rl/episodes/{names[0]}")["outcome"] == 0.7, 30)
    page.press("s", READY)
    until(lambda: robot.call(f"/rl/episodes/{names[1]}")["outcome"] == 1, 30)
