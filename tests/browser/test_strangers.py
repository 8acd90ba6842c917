"""Pages of other sites in the same browser, each of which tries to have our server act: none is heard."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.request

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.both]

# every way in which a page can send what it likes to a server that is not its own; `asked` are our requests
ATTACK = """async ([home, asked, secrets]) => {
    const heard = [];
    const hear = (what, text) => text && heard.push(`${what}: ${String(text).slice(0, 300)}`);
    const get = async (path, mode) => {
        try { return await (await fetch(home + path, { mode })).text(); } catch { return ''; }
    };
    for (const path of ['lora-merge/token', 'config', 'info', '', 'queue/status'])
        for (const mode of ['cors', 'no-cors']) hear(`GET ${path} ${mode}`, await get(path, mode));
    const tokens = [undefined, '', ...secrets];
    const bodies = asked.flatMap((one) => tokens.map((token) => JSON.stringify({ ...one, token })))
        .flatMap((text) => [0, 1].map((fn_index) => JSON.stringify(
            { fn_index, trigger_id: null, data: [text], event_data: null, session_hash: 'stranger' })));
    const paths = ['run/predict', 'run/predict/', 'api/predict', 'queue/join', 'call/predict', 'run/0', 'lora-merge/v1/merge', 'lora-merge/v1/jobs/1/cancel'];
    const kinds = [undefined, 'text/plain', 'application/x-www-form-urlencoded', 'application/json'];
    const send = async (path, body, kind, mode) => {
        const headers = kind ? { 'Content-Type': kind } : {};
        /* a Blob without a type has the browser send no Content-Type at all */
        const content = kind ? body : new Blob([body]);
        try { hear(`POST ${path} ${kind} ${mode}`, await (await fetch(home + path, { method: 'POST', mode, headers, body: content })).text()); } catch { /* refused */ }
    };
    /* each request in every way; all tokens and numbers in the way that needs no leave, of the others one in each */
    const ways = kinds.flatMap((kind) => ['no-cors', 'cors'].map((mode) => [kind, mode]));
    const variants = tokens.length * 2;
    for (const path of paths)
        for (const [way, [kind, mode]] of ways.entries()) {
            const some = kind === 'text/plain' && mode === 'no-cors' ? bodies : bodies.filter((_, one) => one % variants === way % variants);
            await Promise.all(some.map((body) => send(path, body, kind, mode)));
        }
    for (const body of bodies) navigator.sendBeacon(home + 'run/predict', new Blob([body], { type: 'text/plain' }));
    /* a form whose one field spells JSON, sent into a frame */
    for (const body of bodies.slice(0, 4)) {
        const frame = Object.assign(document.createElement('iframe'), { name: 'sink' });
        const form = Object.assign(document.createElement('form'), { method: 'POST', action: home + 'run/predict', enctype: 'text/plain', target: 'sink' });
        const field = Object.assign(document.createElement('input'), { name: `${body.slice(0, -1)},"x":"`, value: '"}' });
        form.append(field);
        document.body.append(frame, form);
        form.submit();
        await new Promise((done) => { frame.onload = done; setTimeout(done, 2000); });
        frame.remove();
    }
    /* gradio 3 takes requests over a socket, too */
    await Promise.all(bodies.map((body) => new Promise((done) => {
        const socket = new WebSocket(`${home.replace('http', 'ws')}queue/join`);
        socket.onopen = () => {
            socket.send(JSON.stringify({ fn_index: 0, session_hash: 's' }));
            socket.send(body);
            setTimeout(() => { socket.close(); done(); }, 500);
        };
        socket.onmessage = (event) => hear('socket', event.data);
        socket.onerror = socket.onclose = done;
    })));
    return heard;
}"""
# from a sandboxed frame the origin is called "null"
SANDBOXED = """([attack, given]) => new Promise((done) => {
    const frame = document.createElement('iframe');
    frame.sandbox = 'allow-scripts allow-forms';
    frame.srcdoc = `<body><script>(${attack})(${given}).then((heard) => parent.postMessage(heard, '*'))<` + '/script>';
    addEventListener('message', (event) => done(event.data));
    document.body.append(frame);
})"""


@pytest.fixture(scope="module")
def elsewhere():
    """A site of its own, which serves an empty page at every address."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><body>another site")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def _asked(app):
    """Return requests that overwrite a LoRA, remove one, save a preset and keep a recipe."""
    original = next(app.folder.rglob("sample-ink-style.safetensors"))
    key = f"0/{original.relative_to(app.folder).as_posix()}"
    rows = [{"key": key, "ratio": 0.5, "on": True}]
    output = {"template": original.stem, "folder": original.parent.name, "overwrite": True}
    state = {"sources": rows, "output": output}
    return [
        {"id": 1, "op": "merge", "state": state},
        {"id": 2, "op": "preset_save", "name": "stranger", "weights": {"IN04": 0.5}},
        {"id": 3, "op": "recipe_save", "name": "stranger", "state": state},
        {"id": 4, "op": "init"},
    ]


def _files(app):
    kept = [*app.folder.rglob("*"), *app.data.rglob("*.json"), *app.data.rglob("*.txt")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept if path.is_file()}


@pytest.mark.parametrize("site", ["http://elsewhere.example", "http://127.0.0.1", "null"])
def test_a_page_of_another_site_is_not_heard(browser, app, elsewhere, site):
    before = _files(app)
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site if site != 'null' else 'http://localhost'}:{elsewhere}/")
    given = [app.url, _asked(app), ["guessed", None]]
    if site == "null":
        heard = page.evaluate(SANDBOXED, [ATTACK, json.dumps(given)])
    else:
        heard = page.evaluate(ATTACK, given)
    context.close()
    assert heard == []
    assert _files(app) == before


def test_a_name_that_was_made_to_mean_this_machine_is_not_heard(browser, app):
    before = _files(app)
    context = browser.new_context()
    page = context.new_page()
    foreign = app.url.replace("127.0.0.1", "rebound.example")
    assert page.goto(foreign).status == 403
    heard = page.evaluate(ATTACK, [foreign, _asked(app), ["guessed"]])
    context.close()
    assert heard
    assert all("for this computer alone" in one for one in heard), heard
    assert _files(app) == before


def test_a_link_from_another_site_opens_the_page_and_a_frame_there_stays_empty(browser, app, elsewhere):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://elsewhere.example:{elsewhere}/")
    page.evaluate("(home) => { const frame = document.createElement('iframe'); frame.src = home; document.body.append(frame); }", app.url)  # fmt: skip
    page.wait_for_timeout(1500)
    assert not any(frame.query_selector("#lora_merge_page") for frame in page.frames[1:])
    page.evaluate("(home) => { const link = document.createElement('a'); link.href = home; document.body.append(link); link.click(); }", app.url)  # fmt: skip
    page.wait_for_selector("#lora_merge_root .lm-columns", timeout=60000)
    context.close()


def test_a_page_that_was_open_while_the_server_was_started_anew_goes_on(tab, app):
    first = tab.page.evaluate("() => loraMerge.bridge.token")
    app.stop()
    app.start()
    known = tab.page.evaluate(
        "() => loraMerge.bridge.ask('methods', {}).then((reply) => reply.methods.length)"
    )
    assert known > 10
    assert tab.page.evaluate("() => loraMerge.bridge.token") != first
    tab.errors.clear()  # while it was away, requests failed


def test_no_configuration_of_gradio_holds_the_token(tab, app):
    token = tab.page.evaluate("() => loraMerge.bridge.token")
    assert len(token) > 30
    for path in ("", "config", "info"):
        assert token not in urllib.request.urlopen(app.url + path).read().decode()
