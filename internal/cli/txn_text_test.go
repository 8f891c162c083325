package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// byteString returns a byte string of a document, in whichever form it has.
func byteString(t *testing.T, doc map[string]any, field string) string {
	if text, ok := doc[field].(string); ok {
		return text
	}
	text, _ := doc[field+"_base64"].(string)
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// FuzzTxnText: any bytes in quotes come back in the document of a transaction, and of an
// arbitrary text each line is in it once.
func FuzzTxnText(f *testing.F) {
	f.Add("if\nk exists\nthen\nput k \"a b\" ttl=5s\nelse\ndel prefix x # all\n", "k", "v")
	f.Add("if:\n\"\\xff\" value = \"\\u00e9\"\nthen:\nincr n -3\n", "\xff\x00", "\u2028\"")
	f.Add("then\nput a b c=d ttl=1 lease=2\nlist \"\"\nget #\n", "#", "ttl=1")
	f.Add("if\nk version < 07\n", "", "\r")
	f.Fuzz(func(t *testing.T, text, key, value string) {
		checkQuoted(t, key, value)
		doc, err := parseTxn(text)
		if err != nil {
			return
		}
		var got map[string][]map[string]any
		if err := json.Unmarshal(doc, &got); err != nil {
			t.Fatalf("%q became %s: %v", text, doc, err)
		}
		want, have := 0, 0
		for line := range strings.Lines(text) {
			switch line = strings.Trim(line, " \t\r\n"); strings.TrimSuffix(line, ":") {
			case "", "if", "then", "else":
			default:
				if line[0] != '#' {
					want++
				}
			}
		}
		for section, items := range got {
			if section != "if" && section != "then" && section != "else" {
				t.Fatalf("%q became %s", text, doc)
			}
			have += len(items)
		}
		// The name of a section may be in quotes, or have a # behind it.
		if have > want || have < want-strings.Count(text, "#")-strings.Count(text, `"`) {
			t.Fatalf("%q has %d lines, and %s %d", text, want, doc, have)
		}
	})
}

// checkQuoted writes a transaction with the key and the value.
func checkQuoted(t *testing.T, key, value string) {
	text := fmt.Sprintf("if\n%q value = %q\nthen\nput %q %q\n", key, value, key, value)
	doc, err := parseTxn(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	var got struct {
		If, Then []map[string]any
	}
	if err := json.NewDecoder(bytes.NewReader(doc)).Decode(&got); err != nil || len(got.If) != 1 || len(got.Then) != 1 {
		t.Fatalf("%q became %s, %v", text, doc, err)
	}
	put, _ := got.Then[0]["put"].(map[string]any)
	for _, in := range []map[string]any{got.If[0], put} {
		if byteString(t, in, "key") != key || byteString(t, in, "value") != value {
			t.Fatalf("%q became %s", text, doc)
		}
	}
}
