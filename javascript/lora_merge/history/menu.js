/* A button with three dots, and what stands behind it. */

import { button, el, tabRoot } from "../core/dom.js";

/* the one menu that is open, and how it is closed */
let shut = null;

const place = (menu, anchor) => {
    const at = anchor.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = menu;
    const below = at.bottom + height + 8 < window.innerHeight;
    menu.style.left = `${Math.max(4, Math.min(at.right - width, window.innerWidth - width - 4))}px`;
    menu.style.top = `${Math.max(4, below ? at.bottom + 2 : at.top - height - 2)}px`;
};

const open = (anchor, label, items) => {
    if (shut) shut(false);
    const close = (back) => {
        shut = null;
        menu.remove();
        anchor.setAttribute("aria-expanded", "false");
        document.removeEventListener("pointerdown", outside, true);
        window.removeEventListener("scroll", moved, true);
        if (back && anchor.isConnected) anchor.focus({ preventScroll: true });
    };
    const outside = (event) => !menu.contains(event.target) && close(false);
    /* the page may still be on its way to the button that was pressed */
    const moved = (event) => !menu.contains(event.target) && place(menu, anchor);
    const lines = items.map(({ text, work, title }) =>
        button(
            text,
            () => {
                close(true);
                work();
            },
            { class: "lm-menu-item", role: "menuitem", tabindex: -1, title },
        ),
    );
    const keys = (event) => {
        const at = lines.indexOf(document.activeElement);
        const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
        if (event.key === "Tab") return close(false);
        if (event.key === "Escape") close(true);
        else if (to !== undefined) lines.at(to % lines.length).focus();
        else if (event.key !== "Enter" && event.key !== " ") return undefined;
        if (event.key === "Enter" || event.key === " ") return event.stopPropagation();
        event.preventDefault();
        return event.stopPropagation();
    };
    const menu = el(
        "div",
        { class: "lm-menu", role: "menu", "aria-label": label, onkeydown: keys },
        ...lines,
    );
    tabRoot().append(menu);
    place(menu, anchor);
    anchor.setAttribute("aria-expanded", "true");
    document.addEventListener("pointerdown", outside, true);
    window.addEventListener("scroll", moved, true);
    lines[0].focus({ preventScroll: true });
    shut = close;
};

/** Close the menu that is open: what it belongs to is drawn anew. */
export const closeMenu = () => {
    if (shut) shut(true);
};

/**
 * The button of a menu.
 * @param {string} label what it is a menu of
 * @param {() => {text: string, work: () => any, title?: string}[]} items asked for when it is opened
 * @returns {HTMLButtonElement}
 */
export const moreButton = (label, items) => {
    const anchor = button(
        "⋯",
        () => (anchor.getAttribute("aria-expanded") === "true" ? shut(true) : open(anchor, label, items())),
        {
            class: "lm-button lm-small lm-more",
            "aria-label": label,
            "aria-haspopup": "menu",
            "aria-expanded": "false",
        },
    );
    return anchor;
};
