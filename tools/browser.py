"""A page of a headless Chromium, driven over a pipe in the language of its developer tools by the standard library."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
FLAGS = (
    '--headless',
    '--disable-gpu',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-first-run',
    '--no-default-browser-check',
    '--hide-scrollbars',
    '--remote-debugging-pipe',
)
KEYS = dict(Escape=27, Enter=13, Tab=9, ArrowLeft=37, ArrowUp=38, ArrowRight=39, ArrowDown=40)


def find_browser():
    "Path of a browser, from the variable CHROMIUM or by its usual names, or None"
    for name in (os.environ.get('CHROMIUM'), *NAMES):
        path = name and shutil.which(name)
        if path:
            return path
    return None


def _high(fd):
    "A copy of a file descriptor out of the way of 3 and 4, which the browser reads and writes"
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return copy


class Browser:
    "One page of a headless browser"

    def __init__(self, path):
        self.home = tempfile.mkdtemp()
        self.session = None
        self.n = 0  # messages sent
        self.rest = b''  # what was read of the next message
        self.events = []
        child_reads, self.out = map(_high, os.pipe())
        self.into, child_writes = map(_high, os.pipe())

        def in_child():
            os.setsid()
            os.dup2(child_reads, 3)
            os.dup2(child_writes, 4)

        root = os.name == 'posix' and os.geteuid() == 0
        self.process = subprocess.Popen(
            [path, *FLAGS, *(['--no-sandbox'] if root else []), f'--user-data-dir={self.home}', 'about:blank'],
            preexec_fn=in_child,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        target = self._first_page()
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for part in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{part}.enable')

    def _first_page(self):
        while True:
            for target in self.call('Target.getTargets')['targetInfos']:
                if target['type'] == 'page':
                    return target['targetId']
            time.sleep(0.05)

    def read(self, until):
        "The next message"
        while b'\0' not in self.rest:
            if not select.select([self.into], [], [], max(0, until - time.time()))[0]:
                raise TimeoutError('the browser does not answer')
            got = os.read(self.into, 1 << 20)
            if not got:
                raise EOFError('the browser has gone')
            self.rest += got
        line, _, self.rest = self.rest.partition(b'\0')
        message = json.loads(line)
        if 'method' in message:
            self.events.append(message)
        if message.get('method') == 'Page.javascriptDialogOpening':
            self.send('Page.handleJavaScriptDialog', accept=True)
        return message

    def send(self, method, **params):
        "Send a command; its number"
        self.n += 1
        message = dict(id=self.n, method=method, params=params)
        if self.session:
            message['sessionId'] = self.session
        os.write(self.out, json.dumps(message).encode() + b'\0')
        return self.n

    def call(self, method, limit=60, **params):
        "The answer to a command"
        n, until = self.send(method, **params), time.time() + limit
        message = self.read(until)
        while message.get('id') != n:
            message = self.read(until)
        if 'error' in message:
            raise RuntimeError(message['error'])
        return message['result']

    def ask(self, js):
        "Value of a JavaScript expression, or of what it promises"
        answer = self.call('Runtime.evaluate', expression=js, awaitPromise=True, returnByValue=True, userGesture=True)
        if 'exceptionDetails' in answer:
            raise RuntimeError(answer['exceptionDetails']['exception'].get('description', answer))
        return answer['result'].get('value')

    def wait(self, js, limit=5.0):
        "Whether an expression becomes true in time"
        until = time.time() + limit
        while time.time() < until:
            if self.ask(f'!!({js})'):
                return True
            time.sleep(0.02)
        return self.ask(f'!!({js})')

    def open(self, path, ready="document.readyState === 'complete'"):
        "Seconds until a page is ready"
        self.events.clear()
        start = time.time()
        url = path if str(path).startswith('http') else Path(path).resolve().as_uri()
        self.call('Page.navigate', url=url)
        if not self.wait(ready, 20):
            raise RuntimeError(f'{path} is not drawn. {" ".join(self.errors())}')
        return time.time() - start

    def size(self, width, height):
        "Set the size of the window"
        mobile = width < 500
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def dark(self, on):
        "Prefer dark colours, or light ones"
        scheme = dict(name='prefers-color-scheme', value='dark' if on else 'light')
        self.call('Emulation.setEmulatedMedia', features=[scheme])

    def key(self, key):
        "Press a key"
        number = KEYS.get(key, 191 if key == '/' else ord(key.upper()[0]))
        common = dict(key=key, code=key if len(key) > 1 else '', windowsVirtualKeyCode=number)
        typed = {}
        if key == 'Enter':
            typed = dict(text='\r')
        elif len(key) == 1:
            typed = dict(text=key)
        self.call('Input.dispatchKeyEvent', type='keyDown', **common, **typed)
        self.call('Input.dispatchKeyEvent', type='keyUp', **common)

    def type(self, text):
        "Press the keys of a text"
        for c in text:
            self.key(c)

    def shot(self, path):
        "Write a picture of the window"
        time.sleep(0.3)
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def errors(self):
        "What went to the console, dialogs, and requests that leave this machine"
        bad = [json.dumps(e['params'])[:300] for e in self.events if _is_error(e)]
        requests = [e for e in self.events if e['method'] == 'Network.requestWillBeSent']
        urls = {e['params']['request']['url'] for e in requests}
        own = ('file:', 'data:', 'http://127.0.0.1')
        return bad + [f'it asks for {url[:80]}' for url in urls if not url.startswith(own)]

    def close(self):
        "End the browser and remove its folder"
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        self.process.wait()
        time.sleep(0.2)
        shutil.rmtree(self.home, ignore_errors=True)


def _is_error(event):
    "Whether an event is an exception, a dialog, or an error or a warning on the console"
    method, params = event['method'], event['params']
    if method in ('Runtime.exceptionThrown', 'Page.javascriptDialogOpening'):
        return True
    if method == 'Log.entryAdded':
        return params['entry']['level'] == 'error'
    return method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning')
