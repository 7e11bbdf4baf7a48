// Which videos may hold a connection: browsers open six per server, and events and requests need some of them.

const MOST_VIDEOS = 4;

export class Connections {
  constructor() {
    this.cards = new Set();
  }

  /**
   * Starts a card's player if a connection is free, or one of a card that is not on screen.
   * `insists`: a person asked for this video, so the one that was started first makes room.
   */
  ask(card, { insists = false } = {}) {
    if (this.cards.has(card)) return;
    if (this.cards.size >= MOST_VIDEOS) {
      const other = [...this.cards].find((held) => !held.isOnScreen) ?? (insists ? [...this.cards][0] : null);
      if (!other) return;
      other.player.stop();
      this.release(other);
    }
    this.cards.add(card);
    card.player.start();
  }

  /** The card's player has stopped. */
  release(card) {
    this.cards.delete(card);
  }
}
