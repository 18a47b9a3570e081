// Browsers let sound start, and start again after an interruption (a call, a headset), only from a gesture.

const GESTURES = ["pointerdown", "pointerup", "keydown", "click"];

export function onGesture(listener) {
  for (const gesture of GESTURES) document.addEventListener(gesture, listener, { capture: true, passive: true });
}

// Let an AudioContext run that is "suspended" or "interrupted". Whether it runs, known after at most `longest` ms: a
// browser that waits for a gesture may never answer.
export async function wake(context, longest = 500) {
  if (["running", "closed"].includes(context.state)) return context.state === "running";
  const late = new Promise((done) => setTimeout(done, longest));
  await Promise.race([context.resume().catch(() => {}), late]);
  return context.state === "running";
}
