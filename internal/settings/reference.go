package settings

import (
	"fmt"
	"strings"
)

// Reference returns the tables of docs/configuration.md: every name that is
// accepted, in Markdown.
func Reference() string {
	var t strings.Builder
	t.WriteString("### Settings\n\n| flag and key | variable | takes | default | also | meaning |\n|---|---|---|---|---|---|\n")
	for i := range table {
		row := &table[i]
		def := row.def
		if def == "" {
			def = "–"
		}
		variable := "`" + row.env() + "`"
		if row.secret {
			variable += ", `" + row.env() + fileSuffix + "`"
		}
		fmt.Fprintf(&t, "| `%s` | %s | %s | %s | %s | %s |\n", row.name, variable, cell(row.kind), cell(def), cell(row.otherNames()), cell(row.help))
	}
	t.WriteString("\n### Flags of etcd that have no setting\n\nThey are accepted with the values named, and have no effect then; any other value is refused with the reason.\n\n| flag | accepted | how it is with kvd |\n|---|---|---|\n")
	for _, f := range without {
		values := strings.Join(f.harmless, ", ")
		switch values {
		case "":
			values = "never"
		case "*":
			values = "any value"
		}
		fmt.Fprintf(&t, "| `%s` | %s | %s |\n", f.name, cell(values), cell(f.why))
	}
	return t.String()
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// otherNames lists the names by which the setting is also known.
func (s *setting) otherNames() string {
	var names []string
	for _, f := range alsoNamed {
		if f.setting == s.name {
			names = append(names, "`"+f.name+"`")
		}
	}
	return strings.Join(names, ", ")
}
