// Browsers start no worker for a page from the file system. There the site's search runs in a hidden frame.
// The theme's plugin "offline" takes a file of this name in place of one from the internet.
if (location.protocol === "file:") {
  const head = `<script>
    postMessage = (data) => owner.dispatchEvent(new MessageEvent("message", { data }));
    importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((loaded, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: url, onload: loaded, onerror: failed });
      document.head.append(script);
    })), Promise.resolve());
  </` + "script>";

  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.frame = frame.contentWindow;
      const page = this.frame.document;
      page.open();
      this.frame.owner = this;
      this.loaded = new Promise((resolve) => { this.frame.loaded = resolve; });
      page.write(`${head}<script src="${url}" onload="loaded()"></` + "script>");
      page.close();
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
  window.Worker = window.IFrameWorker;
}
