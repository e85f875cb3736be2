package io.tinymlaas.interop;

import java.util.LinkedHashMap;
import java.util.Map;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;

/** Events to the test as JSON lines on standard output, and arguments from it. */
final class Wire {
    private static final ObjectMapper JSON = new ObjectMapper();

    private Wire() {
    }

    /** Print one event: {"event": name, key: value, ...}. */
    static void tell(String event, Object... pairs) {
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("event", event);
        for (int index = 0; index < pairs.length; index += 2) {
            line.put((String) pairs[index], pairs[index + 1]);
        }
        try {
            String text = JSON.writeValueAsString(line);
            synchronized (Wire.class) {
                System.out.println(text);
                System.out.flush();
            }
        } catch (JsonProcessingException error) {
            throw new IllegalStateException(error);
        }
    }

    /** Read one command of the test. */
    static JsonNode parse(String line) {
        try {
            return JSON.readTree(line);
        } catch (JsonProcessingException error) {
            throw new IllegalArgumentException(line, error);
        }
    }

    /** Options of the command line: --name value. */
    static Map<String, String> options(String[] arguments) {
        Map<String, String> found = new LinkedHashMap<>();
        for (int index = 0; index + 1 < arguments.length; index += 2) {
            found.put(arguments[index].replaceFirst("^--", ""), arguments[index + 1]);
        }
        return found;
    }
}
