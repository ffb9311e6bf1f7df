//! The page of a hostile guest: it runs in the browser of a signed-in user.

/// The page itself. It sends no policy of its own, so nothing but the browser and the
/// control plane stands in its way.
pub(crate) fn html(role: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{role}</title>\
         <p id=\"role\">{role}</p><script src=\"hostile/attack.js\"></script></html>"
    )
}

/// Tries to use the control plane as the user. Each attempt says what came of it.
pub(crate) const SCRIPT: &str = r#"
"use strict";
const outcome = async (attempt) => {
  try { return await attempt(); } catch (error) { return `refused by the browser: ${error.name}`; }
};
const attempts = {
  async fetchRead(control, path) {
    const answer = await fetch(control + path, { credentials: "include" });
    return `read ${answer.status} ${(await answer.text()).slice(0, 200)}`;
  },
  // No preflight: the request itself reaches the server, whatever the answer may be.
  async fetchBlind(control, path) {
    await fetch(control + path, { method: "POST", mode: "no-cors", credentials: "include", body: "{}" });
    return "sent";
  },
  async fetchWrite(control, path) {
    const answer = await fetch(control + path, {
      method: "POST", credentials: "include", body: "{}", headers: { "content-type": "application/json" },
    });
    return `wrote ${answer.status}`;
  },
  xhr(control, path) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("GET", control + path);
      request.withCredentials = true;
      request.onload = () => resolve(`read ${request.status} ${request.responseText.slice(0, 200)}`);
      request.onerror = () => reject(new Error("network"));
      request.send();
    });
  },
  webSocket(control, path) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(control.replace(/^http/, "ws") + path);
      socket.onopen = () => { socket.close(); resolve("opened"); };
      socket.onerror = () => reject(new Error("network"));
    });
  },
  frame(control, path) {
    return new Promise((resolve) => {
      const frame = document.createElement("iframe");
      const tell = () => {
        let text = "unreadable";
        try { text = `read ${frame.contentDocument.body.innerText.slice(0, 200)}`; } catch (_) { /* another origin */ }
        resolve(text);
      };
      frame.onload = tell;
      frame.src = control + path;
      document.body.append(frame);
    });
  },
  // Submits into a frame, so that this page stays.
  form(control, path) {
    return new Promise((resolve) => {
      const frame = document.createElement("iframe");
      frame.name = `target${Math.random()}`;
      document.body.append(frame);
      const form = document.createElement("form");
      Object.assign(form, { method: "POST", action: control + path, target: frame.name, enctype: "text/plain" });
      document.body.append(form);
      frame.onload = () => resolve("submitted");
      form.submit();
    });
  },
  async beacon(control, path) {
    return navigator.sendBeacon(control + path, "{}") ? "sent" : "refused";
  },
  async opener() {
    return window.opener ? "has an opener" : "no opener";
  },
};
window.attack = async (name, control, path) => outcome(() => attempts[name](control, path));
"#;
