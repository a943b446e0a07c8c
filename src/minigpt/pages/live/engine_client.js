// The page's side of the engine: calls go to a Web Worker that runs the text of <script id="engine">, or to this thread.
const WORKER_WAIT = 4000;                 // milliseconds after which a silent worker is given up

class EngineClient {
  constructor() {
    this.waiting = new Map();             // id -> {resolve, reject, message}
    this.count = 0;
    this.place = "";                      // "worker" or "page"
    try {
      this.useWorker();
    } catch {
      this.usePage();
    }
  }

  useWorker() {
    const start = "\nconst answerCall = serveSession((answer) => postMessage(answer));\nonmessage = ({ data }) => answerCall(data);\n"
      + "postMessage({ id: 0 });";
    const worker = new Worker(URL.createObjectURL(new Blob([$("engine").textContent, start], { type: "text/javascript" })));
    const giveUp = (event) => {
      event?.preventDefault?.();
      if (this.place) return;             // it runs: an error of one call comes as an answer
      worker.terminate();
      this.usePage();
    };
    const timer = setTimeout(giveUp, WORKER_WAIT);
    worker.onerror = giveUp;
    worker.onmessage = ({ data: answer }) => {
      if (answer.id) this.take(answer);
      else if (!this.place) {
        clearTimeout(timer);
        this.run("worker", (message) => worker.postMessage(message));
      }
    };
  }

  usePage() {
    this.run("page", serveSession((answer) => this.take(answer)));
  }

  // Sends what waits, and from now on each call at once.
  run(place, send) {
    this.place = root.dataset.engine = place;
    this.send = send;
    for (const { message } of this.waiting.values()) send(message);
  }

  // Calls a method of Session.
  call(name, args) {
    return new Promise((resolve, reject) => {
      const id = ++this.count, message = { id, name, args };
      this.waiting.set(id, { resolve, reject, message });
      if (this.place) this.send(message);
    });
  }

  take({ id, result, error }) {
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }
}
