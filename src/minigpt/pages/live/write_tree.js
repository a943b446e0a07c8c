// What might have been: the tokens written from a text, with the branches left when a token was replaced.
class WriteTree {
  // tokens: of the text that is continued.
  constructor(tokens) {
    this.tokens = [...tokens];
    this.root = { token: null, label: "", alternatives: [], parent: null, children: [], depth: 0 };
    this.tip = this.root;                 // where the next token is written
  }

  // The written tokens from the text to a node, in order.
  path(node = this.tip) {
    const nodes = [];
    for (let each = node; each.parent; each = each.parent) nodes.push(each);
    return nodes.reverse();
  }

  // The whole sequence that leads to a node: what the model reads to write the next token.
  sequence(node = this.tip) {
    return [...this.tokens, ...this.path(node).map(({ token }) => token)];
  }

  // Writes a token after a node. Its branch is taken up again if the node has it already.
  add({ token, label, alternatives }, parent = this.tip) {
    let node = parent.children.find((child) => child.token === token);
    if (!node) {
      node = { token, label, alternatives, parent, children: [], depth: parent.depth + 1 };
      parent.children.push(node);
    }
    this.tip = node;
    return node;
  }

  // Puts another token of the list in a node's place; the node and what follows it stay as a branch.
  replace(node, { token, label }) {
    return this.add({ token, label, alternatives: node.alternatives }, node.parent);
  }

  // Runs of tokens between two branchings: {nodes, next}, next being the segments that follow. One list for each start.
  segments(parent = this.root) {
    return parent.children.map((child) => {
      const nodes = [child];
      while (nodes.at(-1).children.length === 1) nodes.push(nodes.at(-1).children[0]);
      return { nodes, next: this.segments(nodes.at(-1)) };
    });
  }
}

// Labels mark spaces and line breaks; running text shows them.
const writtenText = (label) => label.replaceAll("\u2423", " ").replaceAll("\u21b5", "\u21b5\n").replaceAll("\u2192", "\t");
