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

// maxFileBytes bounds the configuration file: far more than all settings need.
const maxFileBytes = 1 << 20

// maxSecretBytes bounds a file with a secret.
const maxSecretBytes = 64 << 10

// sections are the groups of etcd's file, and what their keys are short for.
var sections = map[string]string{
	"client-transport-security": "",
	"peer-transport-security":   "peer-",
}

// FileLayer has the settings of a file in YAML, of which JSON is a part: one
// mapping of names to values. An empty value is as good as none.
func FileLayer(path string) (Layer, error) {
	text, err := readLimited(path, maxFileBytes)
	if err != nil {
		return nil, err
	}
	return parseFile(path, text)
}

// readLimited reads a file of limited size.
func readLimited(path string, limit int64) (text []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	text, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return text, err
}

// fileReader collects the settings of one file.
type fileReader struct {
	path     string
	layer    Layer
	lines    map[string]int // by setting, to name the first of two
	problems problemList
}

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
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return r.layer, fmt.Errorf("%s has more than one document, or something after it that is no YAML", path)
	}
	r.root(doc.Content[0])
	return r.layer, r.problems.join()
}

func (r *fileReader) root(n *yaml.Node) {
	switch {
	case n.Kind == yaml.MappingNode:
		r.mapping(n, "")
	case !isNull(n):
		r.add(n, "is no list of \"name: value\"")
	}
}

// mapping reads names and values; inside of a section, the names are short.
func (r *fileReader) mapping(n *yaml.Node, section string) {
	for pair := range slices.Chunk(n.Content, 2) {
		key, value := pair[0], pair[1]
		if key.Kind != yaml.ScalarNode {
			r.add(key, "a name is expected here")
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

// nameOf returns the setting that a key names, or "" after a complaint.
func (r *fileReader) nameOf(key *yaml.Node, section string) string {
	prefix := sections[section]
	candidates := []string{prefix + key.Value}
	if section != "" { // allowed-cn in a section is --peer-cert-allowed-cn
		candidates = append(candidates, prefix+"cert-"+key.Value)
	}
	for _, name := range candidates {
		switch {
		case name == configFile:
			r.add(key, "%s: a file cannot name another one", configFile)
			return ""
		case known(name):
			return name
		}
	}
	r.add(key, "%q is no setting%s", key.Value, nearest(prefix+key.Value, same))
	return ""
}

// first complains about a key that was there before.
func (r *fileReader) first(key *yaml.Node, name string) bool {
	if line, ok := r.lines[name]; ok {
		r.add(key, "%q was set in line %d already", key.Value, line)
		return false
	}
	r.lines[name] = key.Line
	return true
}

// value takes a scalar, or a sequence of them as what commas would separate.
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
				r.add(item, "%s: the list may have plain values only", name)
				return
			}
			parts = append(parts, item.Value)
		}
	default:
		r.add(n, "%s needs a plain value or a list of them", name)
		return
	}
	if text := strings.Join(parts, ","); text != "" {
		r.layer[name] = Given{Text: text, Origin: r.at(n)}
	}
}

func (r *fileReader) at(n *yaml.Node) string { return fmt.Sprintf("%s:%d", r.path, n.Line) }

func (r *fileReader) add(n *yaml.Node, format string, args ...any) {
	r.problems.add("%s: %s", r.at(n), fmt.Sprintf(format, args...))
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// readSecret reads a secret from the file that a variable names. Editors end a
// file with a newline that is no part of it.
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
