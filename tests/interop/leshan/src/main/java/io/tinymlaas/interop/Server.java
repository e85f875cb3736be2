package io.tinymlaas.interop;

import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

import org.eclipse.californium.core.config.CoapConfig;
import org.eclipse.californium.elements.config.Configuration;
import org.eclipse.leshan.core.endpoint.Protocol;
import org.eclipse.leshan.core.model.ObjectLoader;
import org.eclipse.leshan.core.model.ObjectModel;
import org.eclipse.leshan.core.node.LwM2mNode;
import org.eclipse.leshan.core.node.LwM2mObject;
import org.eclipse.leshan.core.node.LwM2mObjectInstance;
import org.eclipse.leshan.core.node.LwM2mPath;
import org.eclipse.leshan.core.node.LwM2mResource;
import org.eclipse.leshan.core.node.LwM2mResourceInstance;
import org.eclipse.leshan.core.node.LwM2mSingleResource;
import org.eclipse.leshan.core.observation.CompositeObservation;
import org.eclipse.leshan.core.observation.Observation;
import org.eclipse.leshan.core.observation.SingleObservation;
import org.eclipse.leshan.core.request.ContentFormat;
import org.eclipse.leshan.core.request.DiscoverRequest;
import org.eclipse.leshan.core.request.DownlinkDeviceManagementRequest;
import org.eclipse.leshan.core.request.ExecuteRequest;
import org.eclipse.leshan.core.request.ObserveCompositeRequest;
import org.eclipse.leshan.core.request.ObserveRequest;
import org.eclipse.leshan.core.request.ReadCompositeRequest;
import org.eclipse.leshan.core.request.ReadRequest;
import org.eclipse.leshan.core.request.WriteCompositeRequest;
import org.eclipse.leshan.core.request.WriteRequest;
import org.eclipse.leshan.core.response.DiscoverResponse;
import org.eclipse.leshan.core.response.LwM2mResponse;
import org.eclipse.leshan.core.response.ObserveCompositeResponse;
import org.eclipse.leshan.core.response.ObserveResponse;
import org.eclipse.leshan.core.response.ReadCompositeResponse;
import org.eclipse.leshan.core.response.ReadResponse;
import org.eclipse.leshan.server.LeshanServer;
import org.eclipse.leshan.server.LeshanServerBuilder;
import org.eclipse.leshan.server.model.VersionedModelProvider;
import org.eclipse.leshan.server.observation.ObservationListener;
import org.eclipse.leshan.server.registration.Registration;
import org.eclipse.leshan.server.registration.RegistrationListener;
import org.eclipse.leshan.server.registration.RegistrationUpdate;
import org.eclipse.leshan.transport.californium.server.endpoint.CaliforniumServerEndpointsProvider;
import org.eclipse.leshan.transport.californium.server.endpoint.coap.CoapServerProtocolProvider;

import com.fasterxml.jackson.databind.JsonNode;

/**
 * A LwM2M server on Eclipse Leshan that a test drives.
 *
 * Options: --port, --models folder of OMA definitions, --quiet true (tells nothing of registrations, for measurements). Commands, one JSON object a line, with "id" and "endpoint":
 * {"do": "read", "path", "format"}, "write" ("value", "text" or "hex"), "execute" ("arguments"), "observe", "discover",
 * "read-composite" and "observe-composite" ("paths", "format"), "write-composite" ("paths", "value"). Each is answered by {"event": "answer", "id", "code", ...}.
 */
public final class Server {
    private static final long TIMEOUT_MS = 60_000;
    private static final Map<String, ContentFormat> FORMATS = Map.of("TLV", ContentFormat.TLV, "TEXT", ContentFormat.TEXT,
            "OPAQUE", ContentFormat.OPAQUE, "SENML_JSON", ContentFormat.SENML_JSON, "SENML_CBOR",
            ContentFormat.SENML_CBOR, "CBOR", ContentFormat.CBOR);
    private final LeshanServer server;

    private Server(LeshanServer server) {
        this.server = server;
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = Wire.options(arguments);
        List<ObjectModel> models = ObjectLoader.loadAllDefault();
        models.addAll(ObjectLoader.loadObjectsFromDir(new File(options.get("models")), true));
        CaliforniumServerEndpointsProvider.Builder endpoints = new CaliforniumServerEndpointsProvider.Builder(
                new CoapServerProtocolProvider());
        Configuration configuration = endpoints.createDefaultConfiguration();
        configuration.set(CoapConfig.MAX_RESOURCE_BODY_SIZE, 4 * 1024 * 1024);
        endpoints.setConfiguration(configuration);
        endpoints.addEndpoint(new InetSocketAddress("127.0.0.1", Integer.parseInt(options.getOrDefault("port", "0"))),
                Protocol.COAP);
        LeshanServerBuilder builder = new LeshanServerBuilder();
        builder.setObjectModelProvider(new VersionedModelProvider(models));
        builder.setEndpointsProviders(endpoints.build());
        LeshanServer server = builder.build();
        if (!options.containsKey("quiet")) {
            server.getRegistrationService().addListener(new Registrations());
        }
        server.getObservationService().addListener(new Observations());
        server.start();
        Wire.tell("listening", "uri", server.getEndpoints().get(0).getURI().toString());
        new Server(server).obey();
        server.destroy();
    }

    private void obey() throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JsonNode command = Wire.parse(line);
            int id = command.get("id").asInt();
            try {
                Registration device = server.getRegistrationService().getByEndpoint(command.get("endpoint").asText());
                LwM2mResponse answer = server.send(device, request(command), TIMEOUT_MS);
                tell(id, answer);
            } catch (Exception error) {
                Wire.tell("answer", "id", id, "code", "failed", "why", String.valueOf(error));
            }
        }
    }

    private static DownlinkDeviceManagementRequest<? extends LwM2mResponse> request(JsonNode command) throws Exception {
        String path = command.path("path").asText();
        ContentFormat format = FORMATS.get(command.path("format").asText());
        List<String> paths = new ArrayList<>();
        command.path("paths").forEach(each -> paths.add(each.asText()));
        return switch (command.get("do").asText()) {
        case "read" -> new ReadRequest(format, path);
        case "discover" -> new DiscoverRequest(path);
        case "observe" -> new ObserveRequest(format, path);
        case "execute" -> new ExecuteRequest(path, command.path("arguments").asText());
        case "read-composite" -> new ReadCompositeRequest(format, format, paths);
        case "observe-composite" -> new ObserveCompositeRequest(format, format, paths.toArray(new String[0]));
        case "write-composite" -> new WriteCompositeRequest(format, Map.of(paths.get(0), command.get("value").asLong()));
        case "write" -> write(new LwM2mPath(path), command);
        default -> throw new IllegalArgumentException(command.toString());
        };
    }

    private static WriteRequest write(LwM2mPath path, JsonNode command) throws Exception {
        int object = path.getObjectId(), instance = path.getObjectInstanceId(), resource = path.getResourceId();
        if (command.has("hex")) {
            byte[] bytes = HexFormat.of().parseHex(command.get("hex").asText());
            if (path.isResourceInstance()) {
                return new WriteRequest(WriteRequest.Mode.UPDATE, ContentFormat.TLV, object, instance, resource,
                        Map.of(path.getResourceInstanceId(), bytes), org.eclipse.leshan.core.model.ResourceModel.Type.OPAQUE);
            }
            return new WriteRequest(ContentFormat.OPAQUE, object, instance, resource, bytes);
        }
        if (command.has("text")) {
            return new WriteRequest(ContentFormat.TEXT, object, instance, resource, command.get("text").asText());
        }
        return new WriteRequest(FORMATS.get(command.get("format").asText()), object, instance, resource,
                command.get("value").asLong());
    }

    private static void tell(int id, LwM2mResponse answer) {
        if (answer == null) {
            Wire.tell("answer", "id", id, "code", "timeout");
            return;
        }
        Map<String, Object> values = new LinkedHashMap<>();
        if (answer.isSuccess() && answer instanceof ReadCompositeResponse composite) {
            composite.getContent().forEach((path, node) -> collect(path, node, values));
        } else if (answer.isSuccess() && answer instanceof ObserveResponse observe) {
            collect(observe.getObservation().getPath(), observe.getContent(), values);
        } else if (answer.isSuccess() && answer instanceof ReadResponse read) {
            collect(null, read.getContent(), values);
        } else if (answer.isSuccess() && answer instanceof DiscoverResponse discover) {
            for (var link : discover.getObjectLinks()) {
                values.put(link.getUriReference(), link.getAttributes().toString());
            }
        }
        Wire.tell("answer", "id", id, "code", String.valueOf(answer.getCode().getCode()), "why",
                String.valueOf(answer.getErrorMessage()), "values", values);
    }

    /** Values by path where the path of the request is known, else relative to it. */
    private static void collect(LwM2mPath at, LwM2mNode node, Map<String, Object> values) {
        String prefix = at == null || at.isRoot() ? "" : at.toString();
        if (node instanceof LwM2mObject object) {
            for (LwM2mObjectInstance each : object.getInstances().values()) {
                instance(prefix + "/" + each.getId(), each, values);
            }
        } else if (node instanceof LwM2mObjectInstance instance) {
            instance(prefix, instance, values);
        } else if (node instanceof LwM2mResource resource) {
            resource(prefix, resource, values);
        } else if (node instanceof LwM2mResourceInstance single) {
            values.put(prefix, plain(single.getValue()));
        }
    }

    private static void instance(String prefix, LwM2mObjectInstance instance, Map<String, Object> values) {
        for (LwM2mResource each : instance.getResources().values()) {
            resource(prefix + "/" + each.getId(), each, values);
        }
    }

    private static void resource(String prefix, LwM2mResource resource, Map<String, Object> values) {
        if (resource instanceof LwM2mSingleResource) {
            values.put(prefix, plain(resource.getValue()));
        } else {
            resource.getInstances().forEach((id, each) -> values.put(prefix + "/" + id, plain(each.getValue())));
        }
    }

    private static Object plain(Object value) {
        return value instanceof byte[] bytes ? HexFormat.of().formatHex(bytes) : value;
    }

    /** Tells the test of registrations. */
    private static final class Registrations implements RegistrationListener {
        @Override
        public void registered(Registration registration, Registration before, Collection<Observation> observations) {
            List<String> links = new ArrayList<>();
            for (var link : registration.getObjectLinks()) {
                links.add(link.getUriReference());
            }
            Wire.tell("registered", "endpoint", registration.getEndpoint(), "lifetime",
                    registration.getLifeTimeInSec(), "version", registration.getLwM2mVersion().toString(), "queue",
                    registration.usesQueueMode(), "links", links);
        }

        @Override
        public void updated(RegistrationUpdate update, Registration registration, Registration before) {
            Wire.tell("updated", "endpoint", registration.getEndpoint(), "lifetime", registration.getLifeTimeInSec());
        }

        @Override
        public void unregistered(Registration registration, Collection<Observation> observations, boolean expired,
                Registration replacement) {
            Wire.tell("unregistered", "endpoint", registration.getEndpoint(), "expired", expired);
        }
    }

    /** Tells the test of notifications. */
    private static final class Observations implements ObservationListener {
        @Override
        public void newObservation(Observation observation, Registration registration) {
        }

        @Override
        public void cancelled(Observation observation) {
        }

        @Override
        public void onResponse(SingleObservation observation, Registration registration, ObserveResponse response) {
            Map<String, Object> values = new LinkedHashMap<>();
            collect(observation.getPath(), response.getContent(), values);
            Wire.tell("notified", "path", observation.getPath().toString(), "values", values);
        }

        @Override
        public void onResponse(CompositeObservation observation, Registration registration,
                ObserveCompositeResponse response) {
            Wire.tell("notified", "path", observation.getPaths().toString());
        }

        @Override
        public void onError(Observation observation, Registration registration, Exception error) {
            Wire.tell("notification failed", "why", String.valueOf(error));
        }
    }
}
