package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFileBytes bounds the configuration file, far above what all settings need.
// --config-file /dev/zero must fail, not fill the memory.
const maxFileBytes = 1 << 20

// maxSecretBytes bounds a file that holds a secret.
const maxSecretBytes = 64 << 10

// sections are the sections of etcd's file, with the prefix that their keys lack.
var sections = map[string]string{
	"client-transport-security": "",
	"peer-transport-security":   "peer-",
}

// FileLayer returns the settings of a file in YAML, or in JSON, which is a subset
// of it: one mapping of names to values. An empty value counts as not set.
//
// It walks the nodes instead of decoding into a map, because a map forgets lines,
// keeps the last of two equal keys without a word, and turns the token 0123 into
// the number 83.
func FileLayer(path string) (Layer, error) {
	text, err := readLimited(path, maxFileBytes)
	if err != nil {
		return nil, err
	}
	return parseFile(path, text)
}

// readLimited reads a file of at most limit bytes.
func readLimited(path string, limit int64) (text []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	text, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return text, err
}

// fileReader collects the settings of one file.
type fileReader struct {
	path     string
	layer    Layer
	lines    map[string]int // line by setting, to name the first of two
	problems problemList
}

// parseFile reads one YAML document. It returns what it could read together with the
// problems, so that one typo does not make every other setting of the file fall back
// to its default and contradict the rest.
func parseFile(path string, text []byte) (Layer, error) {
	r := &fileReader{path: path, layer: make(Layer), lines: make(map[string]int)}
	d := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return r.layer, nil
	case err != nil:
		return r.layer, fmt.Errorf("%s: %w", path, err)
	}
	// A second document is most likely a merge of two files. Ignoring it would drop
	// settings without a word.
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return r.layer, fmt.Errorf("%s has more than one document or is not valid YAML after the first", path)
	}
	r.root(doc.Content[0])
	return r.layer, r.problems.join()
}

// root accepts a mapping, or a file in which everything is commented out.
func (r *fileReader) root(n *yaml.Node) {
	switch {
	case n.Kind == yaml.MappingNode:
		r.mapping(n, "")
	case !isNull(n):
		r.add(n, "the file must consist of \"name: value\" lines")
	}
}

// mapping reads names and values. Inside a section, the names are short.
func (r *fileReader) mapping(n *yaml.Node, section string) {
	for pair := range slices.Chunk(n.Content, 2) {
		key, value := pair[0], pair[1]
		if key.Kind != yaml.ScalarNode {
			r.add(key, "expected the name of a setting")
			continue
		}
		if section == "" && value.Kind == yaml.MappingNode {
			if _, ok := sections[key.Value]; ok && r.first(key, key.Value) {
				r.mapping(value, key.Value)
				continue
			}
		}
		if _, empty := sections[key.Value]; section == "" && empty && isNull(value) {
			continue
		}
		if name := r.nameOf(key, section); name != "" && r.first(key, name) {
			r.value(name, value)
		}
	}
}

// nameOf returns the setting that a key names, or "" after reporting that there is
// none.
func (r *fileReader) nameOf(key *yaml.Node, section string) string {
	prefix := sections[section]
	candidates := []string{prefix + key.Value}
	if section != "" { // in etcd's file, --peer-cert-allowed-cn is allowed-cn in its section
		candidates = append(candidates, prefix+"cert-"+key.Value)
	}
	for _, name := range candidates {
		switch {
		case name == configFile:
			r.add(key, "%s: a configuration file cannot name another one", configFile)
			return ""
		case known(name):
			return name
		}
	}
	r.add(key, "%q is not a setting%s", key.Value, nearest(prefix+key.Value, same))
	return ""
}

// first reports a key that occurred before.
func (r *fileReader) first(key *yaml.Node, name string) bool {
	if line, ok := r.lines[name]; ok {
		r.add(key, "%q is already set in line %d", key.Value, line)
		return false
	}
	r.lines[name] = key.Line
	return true
}

// value accepts a scalar, or a sequence of scalars, which stands for a list with
// commas.
func (r *fileReader) value(name string, n *yaml.Node) {
	var parts []string
	switch n.Kind {
	case yaml.ScalarNode:
		if !isNull(n) {
			parts = []string{n.Value}
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode || strings.Contains(item.Value, ",") {
				r.add(item, "%s: the elements of the list must be plain values without commas", name)
				return
			}
			parts = append(parts, item.Value)
		}
	default:
		r.add(n, "%s must be a plain value or a list of plain values", name)
		return
	}
	if text := strings.Join(parts, ","); text != "" {
		r.layer[name] = Given{Text: text, Origin: r.at(n)}
	}
}

// at returns the origin of a value: file and line.
func (r *fileReader) at(n *yaml.Node) string { return fmt.Sprintf("%s:%d", r.path, n.Line) }

func (r *fileReader) add(n *yaml.Node, format string, args ...any) {
	r.problems.add("%s: %s", r.at(n), fmt.Sprintf(format, args...))
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// readSecret reads a secret from the file that a variable names. The newline with
// which editors end a file is not part of the secret.
func readSecret(path string) (string, error) {
	text, err := readLimited(path, maxSecretBytes)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}
