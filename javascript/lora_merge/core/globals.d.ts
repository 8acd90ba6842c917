/* What WebUIs and gradio have in their pages, where they are there. */

declare function gradioApp(): Document | ShadowRoot;

interface Window {
    switch_to_txt2img?: () => void;
    selected_gallery_index?: () => number;
}
