// Where the panel of a bell goes: below it or above it, along its end, and always within the window.

const GAP_PX = 8; // between panel, bell and the edges of the window
const ROOM_PX = 260; // with less below the bell the panel opens above it, if there is more

/** Places a panel of fixed position at `bell`, no higher than `most` or than there is room. */
export function place(panel: HTMLElement, bell: HTMLElement, most: string): void {
  const at = bell.getBoundingClientRect();
  const { clientWidth: width, clientHeight: height } = document.documentElement;
  const style = getComputedStyle(panel);
  const own = parseFloat(style.width) || 0; // known before it is shown, for the sheet sets it
  const left = style.direction === "rtl" ? at.left : at.right - own;
  const [above, below] = [at.top - 2 * GAP_PX, height - at.bottom - 2 * GAP_PX];
  const isBelow = below >= ROOM_PX || below >= above;
  Object.assign(panel.style, {
    left: `${Math.max(GAP_PX, Math.min(left, width - own - GAP_PX))}px`,
    top: isBelow ? `${at.bottom + GAP_PX}px` : "auto",
    bottom: isBelow ? "auto" : `${height - at.top + GAP_PX}px`,
    maxHeight: `min(${most}, ${Math.max(isBelow ? below : above, 0)}px)`,
  });
}
