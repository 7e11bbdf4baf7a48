// The model that the server runs, as the server describes it.

import { json } from "./api.js";

export const model = { actions: [] };

export async function readModel() {
  Object.assign(model, await json("/v1/model"));
}
