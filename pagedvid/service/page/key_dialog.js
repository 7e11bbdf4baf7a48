// Asks for the API key.

/** A promise of the key that is typed in. */
export function askForKey(reason) {
  const dialog = document.getElementById("key-dialog");
  const form = dialog.querySelector("form");
  document.getElementById("key-reason").textContent = reason;
  form.reset();
  dialog.showModal();
  return new Promise((resolve) => {
    // Without a key there is nothing to see: the dialog only closes with one.
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => (form.elements.key.value ? resolve(form.elements.key.value.trim()) : dialog.showModal());
  });
}
