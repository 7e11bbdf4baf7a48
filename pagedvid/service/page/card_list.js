// The list of cards, newest first.

import { Connections } from "./connections.js";
import { prefersStillness } from "./dom.js";
import { SessionCard } from "./session_card.js";

export class CardList {
  constructor(sessions, onHighlight) {
    this.list = document.getElementById("sessions");
    this.empty = document.getElementById("no-sessions");
    this.shared = { sessions, connections: new Connections(), onHighlight };
    this.cards = new Map();
  }

  show(session) {
    if (!this.cards.has(session.id)) this.#add(session);
    this.cards.get(session.id).update(session);
  }

  remove(id) {
    this.cards.get(id)?.remove();
    this.cards.delete(id);
    this.empty.hidden = this.cards.size > 0;
  }

  /** Scrolls to a card, no further than needed. */
  reveal(id) {
    const behavior = prefersStillness.matches ? "auto" : "smooth";
    this.cards.get(id)?.element.scrollIntoView({ block: "nearest", behavior });
  }

  point(id) {
    for (const [cardId, card] of this.cards) card.point(cardId === id);
  }

  #add(session) {
    const card = new SessionCard(session, this.shared);
    this.cards.set(session.id, card);
    const order = this.shared.sessions.all().map(({ id }) => id);
    const after = order.slice(order.indexOf(session.id) + 1).find((id) => this.cards.has(id));
    this.list.insertBefore(card.element, after ? this.cards.get(after).element : null);
    this.empty.hidden = true;
  }
}
