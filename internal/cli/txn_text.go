package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// parseTxn turns the text of a transaction into its JSON. What it leaves unchecked,
// for example that a ttl is a duration, the node checks.
func parseTxn(text string) ([]byte, error) {
	doc := make(map[string][]any)
	section := ""
	number := 0
	for line := range strings.Lines(text) {
		number++
		words, err := splitWords(line)
		if err != nil {
			return nil, usagef("line %d: %w", number, err)
		}
		switch {
		case len(words) == 0:
			continue
		case len(words) == 1 && slices.Contains([]string{"if", "then", "else"}, strings.TrimSuffix(words[0], ":")):
			section = strings.TrimSuffix(words[0], ":")
			continue
		case section == "":
			return nil, usagef("line %d: %q comes before any of the lines if, then, and else", number, words[0])
		}
		parse := parseOperation
		if section == "if" {
			parse = parseComparison
		}
		item, err := parse(words)
		if err != nil {
			return nil, usagef("line %d: %w", number, err)
		}
		doc[section] = append(doc[section], item)
	}
	return json.Marshal(doc)
}

// comparedFields are the numbers that a comparison can look at.
var comparedFields = []string{"revision", "create_revision", "version", "lease"}

// relations has the name of each relation in JSON; equality has none.
var relations = map[string]string{"=": "", "==": "", "!=": "ne", "<": "lt", ">": "gt"}

// parseComparison reads KEY exists, KEY absent, and KEY FIELD RELATION VALUE.
func parseComparison(words []string) (any, error) {
	doc := make(map[string]any)
	byteField(doc, "key", words[0])
	if len(words) == 2 && (words[1] == "exists" || words[1] == "absent") {
		doc["exists"] = words[1] == "exists"
		return doc, nil
	}
	if len(words) != 4 {
		return nil, fmt.Errorf("a comparison is KEY exists, KEY absent, or KEY FIELD = VALUE, but this is %q", strings.Join(words, " "))
	}
	relation, ok := relations[words[2]]
	if !ok {
		return nil, fmt.Errorf("%q is not one of =, !=, <, and >", words[2])
	}
	if words[1] == "value" {
		if relation != "" {
			return nil, errors.New("a value can only be compared with =")
		}
		byteField(doc, "value", words[3])
		return doc, nil
	}
	n, err := comparedTo(words[1], words[3])
	doc[words[1]] = n
	if relation != "" {
		doc[words[1]] = map[string]any{relation: n}
	}
	return doc, err
}

// comparedTo returns the number that a field is compared to.
func comparedTo(field, operand string) (uint64, error) {
	if !slices.Contains(comparedFields, field) {
		return 0, fmt.Errorf("%q is not one of value, %s", field, strings.Join(comparedFields, ", "))
	}
	n, err := strconv.ParseUint(operand, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%s is compared to a number, but %q is none", field, operand)
	}
	return n, nil
}

// operands has the names of the words after each operation; those in brackets may
// be left out.
var operands = map[string]string{
	"put": "KEY VALUE [ttl=DURATION] [lease=ID]", "append": "KEY VALUE [ttl=DURATION]", "incr": "KEY [N] [ttl=DURATION]",
	"get": "KEY", "delete": "KEY, or prefix PREFIX", "list": "PREFIX",
}

// parseOperation reads an operation.
func parseOperation(words []string) (any, error) {
	kind, rest := words[0], words[1:]
	if kind == "del" {
		kind = "delete"
	}
	form, ok := operands[kind]
	if !ok {
		return nil, fmt.Errorf("%q is not one of put, get, list, delete, append, and incr", words[0])
	}
	fields := make(map[string]any)
	wrong := fmt.Errorf("after %s comes %s", words[0], form)
	rest = takeOptions(kind, rest, fields)
	switch {
	case kind == "delete" && len(rest) == 2 && rest[0] == "prefix":
		byteField(fields, "prefix", rest[1])
	case kind == "list" && len(rest) == 1:
		byteField(fields, "prefix", rest[0])
	case kind == "get" && len(rest) == 1, kind == "delete" && len(rest) == 1:
		byteField(fields, "key", rest[0])
	case kind == "put" && len(rest) == 2, kind == "append" && len(rest) == 2:
		byteField(fields, "key", rest[0])
		byteField(fields, "value", rest[1])
	case kind == "incr" && (len(rest) == 1 || len(rest) == 2):
		byteField(fields, "key", rest[0])
		delta, err := strconv.ParseInt(append(rest, "1")[1], 10, 64)
		if err != nil {
			return nil, wrong
		}
		fields["delta"] = delta
	default:
		return nil, wrong
	}
	return map[string]any{kind: fields}, nil
}

// takeOptions moves ttl=D and lease=ID from the end of the words into fields. The
// first two words are a key and a value, whatever they look like.
func takeOptions(kind string, words []string, fields map[string]any) []string {
	for len(words) > 1 {
		name, value, ok := strings.Cut(words[len(words)-1], "=")
		takes := ok && (name == "ttl" && kind != "get" || name == "lease" && kind == "put")
		if !takes || kind != "incr" && len(words) <= 2 {
			break
		}
		fields[name] = value
		words = words[:len(words)-1]
	}
	return words
}

// splitWords splits a line at spaces. A word in double quotes is a string of Go.
func splitWords(line string) (words []string, err error) {
	for {
		line = strings.TrimLeft(line, " \t\r\n")
		switch {
		case line == "" || line[0] == '#':
			return words, nil
		case line[0] == '"':
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("the quotes are not closed, or an escape is unknown: %s", strings.TrimSpace(line))
			}
			word, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", quoted, err)
			}
			words, line = append(words, word), line[len(quoted):]
			if line != "" && !strings.ContainsRune(" \t\r\n", rune(line[0])) {
				return nil, fmt.Errorf("a space is missing after %s", quoted)
			}
		default:
			end := strings.IndexAny(line, " \t\r\n")
			if end < 0 {
				end = len(line)
			}
			words, line = append(words, line[:end]), line[end:]
		}
	}
}
