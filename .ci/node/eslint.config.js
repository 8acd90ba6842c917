import js from "@eslint/js";
import jsdoc from "eslint-plugin-jsdoc";
import globals from "globals";

const page = { ...globals.browser, gradioApp: "readonly" };

export default [
    js.configs.recommended,
    {
        files: ["javascript/lora_merge/**/*.js"],
        languageOptions: { sourceType: "module", globals: page },
        plugins: { jsdoc },
        rules: {
            /* what another file uses says what it takes */
            "jsdoc/require-jsdoc": [
                "error",
                { publicOnly: true, require: { ArrowFunctionExpression: true, FunctionDeclaration: true } },
            ],
            "jsdoc/require-param": "error",
            "jsdoc/require-param-type": "error",
            "jsdoc/check-param-names": "error",
        },
    },
    { files: ["javascript/*.js"], languageOptions: { sourceType: "script", globals: page } },
    {
        files: ["tests/javascript/**/*.js"],
        languageOptions: { sourceType: "module", globals: globals.node },
    },
    {
        rules: {
            eqeqeq: "error",
            "no-var": "error",
            "no-unused-vars": ["error", { ignoreRestSiblings: true }],
            "prefer-const": "error",
            "no-implicit-globals": "error",
            "no-eval": "error",
            "no-implied-eval": "error",
            "no-restricted-properties": [
                "error",
                { property: "innerHTML", message: "text goes into the page as text nodes only" },
                { property: "outerHTML", message: "text goes into the page as text nodes only" },
                { property: "insertAdjacentHTML", message: "text goes into the page as text nodes only" },
            ],
        },
    },
];
