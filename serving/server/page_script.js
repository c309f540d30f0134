"use strict";
// What the server's pages share.
const at = (id) => document.getElementById(id);
let token = sessionStorage.getItem("syvla-token") || "";

async function call(path, body) {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const options = { headers, cache: "no-store", signal: AbortSignal.timeout(15000) };
  if (body !== undefined) {
    options.method = "POST";
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const reply = await fetch(path, options);
  at("access").hidden = reply.status !== 401;
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error || "HTTP " + reply.status);
  return value;
}

function say(text, error) {
  at("message").textContent = text;
  at("message").className = error ? "error" : "";
}

function useToken(then) {
  at("use").onclick = () => {
    token = at("token").value.trim();
    sessionStorage.setItem("syvla-token", token);
    then();
  };
}
