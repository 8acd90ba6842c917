/* Questions over the page: Esc closes them, and the keyboard goes back to where it was. */

import { button, el, tabRoot } from "../core/dom.js";

/**
 * What Enter does in a field. The press ends there: it is not pressed again on what has the focus afterwards.
 * @param {() => any} work
 * @returns {(event: KeyboardEvent) => void}
 */
export const onEnter = (work) => (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    work();
};

/**
 * Open a dialog.
 * @param {object} what
 * @param {string} what.title
 * @param {any[]} what.content
 * @param {() => void} [what.closed] called once, however it was closed
 * @returns {{box: HTMLDialogElement, close: () => void}}
 */
export const openDialog = ({ title, content, closed }) => {
    const before = document.activeElement;
    const close = () => box.close();
    const box = el(
        "dialog",
        { class: "lm-dialog", "aria-label": title },
        el(
            "div",
            { class: "lm-line" },
            el("h3", { class: "lm-grow" }, title),
            button("✕", close, { class: "lm-button lm-small", "aria-label": "Close" }),
        ),
        ...content,
    );
    /* what is pressed here is no shortcut of the tab or the WebUI */
    box.addEventListener("keydown", (event) => event.stopPropagation());
    box.addEventListener("close", () => {
        box.remove();
        if (before instanceof HTMLElement && before.isConnected) before.focus({ preventScroll: true });
        if (closed) closed();
    });
    tabRoot().append(box);
    box.showModal();
    return { box, close };
};

/**
 * Ask for a name.
 * @param {string} title
 * @param {string} value what stands there at first
 * @param {string} yes what the button says
 * @returns {Promise<string>} empty where nobody gave one
 */
export const named = (title, value, yes) =>
    new Promise((resolve) => {
        let answer = "";
        const take = () => ((answer = field.value.trim()), close());
        const field = el("input", {
            type: "text",
            value,
            maxlength: 80,
            "aria-label": "New name",
            onkeydown: onEnter(() => take()),
        });
        const { close } = openDialog({
            title,
            content: [
                field,
                el(
                    "div",
                    { class: "lm-line lm-end" },
                    button("Cancel", () => close()),
                    button(yes, take, { class: "lm-button lm-primary" }),
                ),
            ],
            closed: () => resolve(answer),
        });
        field.select();
    });

/**
 * Ask before something is done.
 * @param {string} question
 * @param {string} yes what the button that does it says
 * @returns {Promise<boolean>}
 */
export const confirmed = (question, yes) =>
    new Promise((resolve) => {
        let answer = false;
        const go = button(yes, () => ((answer = true), close()), { class: "lm-button lm-primary" });
        const { close } = openDialog({
            title: yes,
            content: [
                el("p", {}, question),
                el(
                    "div",
                    { class: "lm-line lm-end" },
                    button("Cancel", () => close()),
                    go,
                ),
            ],
            closed: () => resolve(answer),
        });
        go.focus();
    });
