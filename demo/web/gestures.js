// Browsers let sound start, and start again after an interruption (a call, a headset), only from a gesture. Some also let it
// go on by itself when somebody comes back to the page, as after the screen was locked.

const GESTURES = ["pointerdown", "pointerup", "keydown", "click"];

export function onGesture(listener) {
  for (const gesture of GESTURES) document.addEventListener(gesture, listener, { capture: true, passive: true });
}

// Called whenever somebody comes back: the page is shown again, or goes on after it was frozen.
export function onReturn(listener) {
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && listener());
  document.addEventListener("resume", listener);
  window.addEventListener("pageshow", listener);
}

// Let an AudioContext run that is "suspended" or "interrupted". Whether it runs, known after at most `longest` ms: a
// browser that waits for a gesture may never answer.
export async function wake(context, longest = 500) {
  if (["running", "closed"].includes(context.state)) return context.state === "running";
  const late = new Promise((done) => setTimeout(done, longest));
  await Promise.race([context.resume().catch(() => {}), late]);
  return context.state === "running";
}
