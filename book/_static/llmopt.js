// Boxes that scroll sideways take the keyboard's focus while they have something to scroll, so that
// the arrow keys reach what is outside of them.
const boxes =
  ".bd-article pre, .bd-article table.dataframe, .bd-article .cell_output table, " +
  ".pst-scrollable-table-container, .bd-article .graph";

function reach() {
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight + 1) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  }
}

window.addEventListener("load", () => {
  const article = document.querySelector(".bd-article");
  if (article) new ResizeObserver(reach).observe(article); // calls it at once, too
});
